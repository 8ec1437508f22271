"""What emptying an IDC takes: a pure function of the policy and of where the shards are, and are going."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from policy.intent import is_lawful, targets
from policy.plan import ShardMove, moves_to
from policy.wording import join

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policy.compile import Policy
    from policy.intent import Shard, Standing


@dataclass(frozen=True, slots=True)
class Stuck:
    """Shards of one RegionCode that must stay where they are, and why."""

    region_code: str
    shards: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """Where everything goes that is in an IDC, or on its way there."""

    moved: tuple[ShardMove, ...]
    """With the moves of the rollouts that it takes over, as far as they are still wanted."""
    superseded: frozenset[str]
    """Rollouts that have moves from or to the IDC: all that is left of them is in this plan."""
    stuck: tuple[Stuck, ...]


def plan_drain(policy: Policy, standing: Standing, idc: str) -> DrainPlan:
    """Plans to empty an IDC, with the fewest moves; no shard is touched that is neither there nor on its way there.

    But a rollout that has such a shard is taken over whole, with its other moves as they are.
    """
    standing = replace(standing, drained=standing.drained | {idc})
    meant, stuck = targets(policy, standing, policy)
    concerned = {shard for shard, owner in standing.owners.items() if owner == idc}
    concerned |= {shard for shard, wanted in standing.wanted.items() if wanted.move.target == idc}
    superseded = frozenset(wanted.rollout for shard, wanted in standing.wanted.items() if shard in concerned)
    concerned |= {shard for shard, wanted in standing.wanted.items() if wanted.rollout in superseded}
    mine = tuple(move for move in moves_to(standing, meant, policy) if move.key in concerned)
    return DrainPlan(mine, superseded, _stuck(policy, meant, stuck, standing, idc))


def _stuck(
    policy: Policy, meant: Mapping[Shard, str], stuck: Iterable[Shard], standing: Standing, idc: str
) -> tuple[Stuck, ...]:
    numbers: dict[str, list[int]] = {}
    for code, number in stuck:
        if meant[code, number] == idc:
            numbers.setdefault(code, []).append(number)
    return tuple(
        Stuck(code, tuple(sorted(mine)), _reason(policy, standing.drained, code)) for code, mine in numbers.items()
    )


def _reason(policy: Policy, drained: frozenset[str], code: str) -> str:
    residency = policy.regions[code]
    law = f"residency rule {residency.rule} keeps {code} in {join(residency.jurisdictions)}"
    lawful = [idc for idc in policy.idcs if is_lawful(policy, residency, idc)]
    if len(lawful) > 1 and drained.issuperset(lawful):
        return f"{law}, and {join(lawful)} are all drained"
    return f"{law}, and no other IDC stands under {join(residency.jurisdictions, 'or')}"
