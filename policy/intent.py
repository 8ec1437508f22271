"""Where each shard is meant to be, from the policy, the owners there are, and the moves that are ordered already.

The controller assigns first owners by this, and plans are made by it; so both always mean the same. Nothing is decided
for an IDC that the residency rule does not permit (law L1), and nothing is given to one that is drained, unless the
law leaves no other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from policy.assignment import assign, fill

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policy.compile import Policy
    from policy.model import Residency
    from policy.records import PlannedMove, PlanRecord, RolloutRecord

Shard = tuple[str, int]
"""RegionCode and number."""
NONE_DRAINED: frozenset[str] = frozenset()


class WantedMove(NamedTuple):
    """A move that has been ordered and has not switched yet."""

    rollout: str
    move: PlannedMove


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the shards are, and where they are going already."""

    owners: Mapping[Shard, str] = field(default_factory=dict[Shard, str])
    """Of each shard that has one."""
    wanted: Mapping[Shard, WantedMove] = field(default_factory=dict[Shard, WantedMove])
    """Moves that are ordered and have not switched."""
    drained: frozenset[str] = NONE_DRAINED
    """IDCs that are to be emptied."""


def wanted_moves(
    rollouts: Iterable[RolloutRecord], plans: Mapping[str, PlanRecord], owners: Mapping[Shard, str]
) -> dict[Shard, WantedMove]:
    """The moves that some rollout wants and that have not switched; `rollouts` come oldest first, the newest counts.

    A rollout that is being cancelled still wants what the law demands.
    """
    wanted: dict[Shard, WantedMove] = {}
    for rollout in rollouts:
        plan = plans.get(rollout.rollout)
        for move in plan.moves if plan is not None else ():
            shard = move.region_code, move.shard
            if rollout.wants(required_by_law=move.required_by_law) and owners.get(shard, move.target) != move.target:
                wanted[shard] = WantedMove(rollout.rollout, move)
    return wanted


def is_lawful(policy: Policy, residency: Residency, idc: str) -> bool:
    """Whether the residency rule permits its rows in the IDC (law L1)."""
    return policy.idcs.get(idc, "") in residency.jurisdictions


def usable_weights(policy: Policy, residency: Residency, drained: frozenset[str]) -> Mapping[str, int]:
    """By which weights shards are given to IDCs that are not drained.

    When all IDCs with a weight are drained, the other lawful ones take equal shares; empty: those are drained too.
    """
    if drained.isdisjoint(residency.weights):
        return residency.weights
    left = {idc: weight for idc, weight in residency.weights.items() if idc not in drained}
    return left or {idc: 1 for idc in policy.idcs if idc not in drained and is_lawful(policy, residency, idc)}


def intended_owners(
    policy: Policy | None, owners: Mapping[Shard, str], drained: frozenset[str] = NONE_DRAINED
) -> dict[Shard, str]:
    """Every owner there is, and one by the policy's weights for each shard that has none; nothing is moved."""
    intended = dict(owners)
    for residency in policy.regions.values() if policy is not None else ():
        numbers = range(residency.shards)
        current = {n: owners[residency.region_code, n] for n in numbers if (residency.region_code, n) in owners}
        if len(current) < residency.shards:
            # A first owner must be lawful before it must not be drained: without one, rows would have no home.
            weights = usable_weights(policy, residency, drained) if policy else {}
            chosen = assign(weights or residency.weights, residency.shards, current)
            for number in numbers:
                intended.setdefault((residency.region_code, number), chosen[number])
    return intended


def targets(
    current: Policy | None, standing: Standing, new: Policy, *, rebalance: bool = False
) -> tuple[dict[Shard, str], list[Shard]]:
    """Where each shard is meant to be under `new`, and those that stay in a drained IDC because no other may have them.

    A RegionCode whose residency is the same under both policies keeps what it is meant to have now, shard by shard,
    except where that is unlawful or drained. Any other one, or each when `rebalance` is asked for, is spread by its
    weights, with the fewest moves from where its shards are.
    """
    intended = intended_owners(new, standing.owners, standing.drained)
    going = {shard: wanted.move.target for shard, wanted in standing.wanted.items()}
    meant: dict[Shard, str] = {}
    stuck: list[Shard] = []
    for code, residency in new.regions.items():
        numbers = range(residency.shards)
        here = {n: intended[code, n] for n in numbers}
        weights = usable_weights(new, residency, standing.drained)
        is_same = current is not None and has_same_residency(current, new, code)
        if weights and (rebalance or not is_same):
            owners = {n: standing.owners[code, n] for n in numbers if (code, n) in standing.owners}
            chosen = assign(weights, residency.shards, owners)
        else:
            wanted = {n: going.get((code, n), here[n]) for n in numbers}
            chosen = _mend(new, residency, standing.drained, wanted, here)
        meant.update(((code, n), idc) for n, idc in enumerate(chosen))
        stuck += [(code, n) for n, idc in enumerate(chosen) if idc in standing.drained]
    return meant, stuck


def has_same_residency(one: Policy, other: Policy, code: str) -> bool:
    """Whether both policies say the same of where rows of the RegionCode may be, and are meant to be."""
    mine, its = one.regions.get(code), other.regions.get(code)
    if mine is None or its is None:
        return False
    return (mine.jurisdictions, dict(mine.weights), mine.shards) == (its.jurisdictions, dict(its.weights), its.shards)


def _mend(
    policy: Policy, residency: Residency, drained: frozenset[str], wanted: Mapping[int, str], here: Mapping[int, str]
) -> tuple[str, ...]:
    """`wanted`, but nothing unlawful, and nothing drained as far as the law leaves another; the rest stays."""
    weights = usable_weights(policy, residency, drained)
    kept: dict[int, str] = {}
    for number, idc in wanted.items():
        for candidate in (idc, here[number]):  # a shard whose way has become impossible rather stays where it is
            if is_lawful(policy, residency, candidate) and (candidate not in drained or not weights):
                kept[number] = candidate
                break
    return fill(weights or residency.weights, residency.shards, kept)
