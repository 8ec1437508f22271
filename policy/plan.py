"""What applying a policy would do, before it is done: shards assigned and moved, schema and access changed.

The plan is a pure function of the current policy, of where the shards are and are going, and of the new policy; the
executor has no choice left. What cannot be done at all is an error finding; nobody applies a plan that has one.

A plan is whole: it holds every move that is still to be made, also those that an earlier rollout has begun. So its
rollout takes the place of all earlier ones. When nothing is meant to be elsewhere than before, it holds none, and what
is under way goes on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from policy.changes import AccessChange, access_changes, schema_difference
from policy.findings import Finding, Severity
from policy.intent import Standing, intended_owners, is_lawful, targets
from policy.report import NOWHERE, format_path
from policy.wording import join, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from policy.compile import Policy
    from policy.intent import Shard
    from policy.loading import LoadedPolicy
    from policy.report import Path


class ShardMove(NamedTuple):
    """A shard that gets an owner (`from_idc` is empty) or another one."""

    region_code: str
    shard: int
    from_idc: str
    to_idc: str
    required_by_law: bool = False
    """Whether the law does not permit where the shard lies."""

    @property
    def key(self) -> Shard:
        """RegionCode and number."""
        return self.region_code, self.shard


class HoldingChange(NamedTuple):
    """IDCs that start or stop to hold rows of a RegionCode."""

    region_code: str
    starts: tuple[str, ...]
    stops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one policy would set in motion."""

    assigned: tuple[ShardMove, ...]
    """First owners."""
    moved: tuple[ShardMove, ...]
    """What the law demands comes first; then by RegionCode and shard."""
    schema_changes: tuple[str, ...]
    """New datasets and columns, as `dataset` or `dataset.column`."""
    access_changes: tuple[AccessChange, ...]
    holding_changes: tuple[HoldingChange, ...]
    findings: tuple[Finding, ...]
    is_new: bool = True
    """Whether anything would happen that is not happening already; also that moves under way are called off."""

    @property
    def is_possible(self) -> bool:
        """Whether nothing forbids applying it."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def fingerprint(self, parent: int, document: str) -> str:
        """SHA-256 in hex that stands for all that applying the document on that revision would do."""
        whole = [parent, hashlib.sha256(document.encode()).hexdigest(), self.assigned, self.moved]
        return hashlib.sha256(json.dumps(whole, separators=(",", ":")).encode()).hexdigest()


def make_plan(
    current: Policy | None,
    standing: Standing,
    new: Policy,
    loaded: LoadedPolicy | None = None,
    *,
    rebalance: bool = False,
) -> Plan:
    """Plans the step from `current` to `new`.

    Args:
        current: The policy in force; None before the first.
        standing: Where the shards are, and are going.
        new: The policy to apply.
        loaded: Where `new` comes from: findings then carry their places.
        rebalance: Spread every RegionCode by its weights anew, also where its rule has not changed.
    """
    before = intended_owners(current, standing.owners, standing.drained)
    owners: dict[str, dict[int, str]] = {}
    for (region_code, shard), idc in before.items():
        owners.setdefault(region_code, {})[shard] = idc
    meant, stuck = targets(current, standing, new, rebalance=rebalance)
    schema = schema_difference(current, new)
    problems = [
        *_uncovered(owners, new),
        *_resharded(current, owners, new),
        *(("SCHEMA_CHANGE", message, path) for path, message in schema.refused),
    ]
    assigned, moved = _moves(standing, meant, new)
    is_new = _is_new(standing, before, assigned, moved)
    if not is_new:
        assigned, moved = (), ()
    return Plan(
        assigned=assigned,
        moved=moved,
        schema_changes=schema.added,
        access_changes=access_changes(current, new),
        holding_changes=tuple(_holding_changes(owners, meant, new)) if assigned or moved else (),
        findings=(
            *(_finding(*problem, loaded) for problem in problems),
            *(_finding(*problem, loaded, Severity.WARNING) for problem in _staying(stuck, new)),
        ),
        is_new=is_new,
    )


def moves_to(standing: Standing, meant: Mapping[Shard, str], policy: Policy) -> list[ShardMove]:
    """The moves from the owners there are to those that are meant, in the order in which they are to be made."""
    found: list[ShardMove] = []
    for (code, shard), idc in meant.items():
        owner = standing.owners.get((code, shard), "")
        if owner and owner != idc:
            found.append(ShardMove(code, shard, owner, idc, not is_lawful(policy, policy.regions[code], owner)))
    return sorted(found, key=lambda move: (not move.required_by_law, move))


def _moves(
    standing: Standing, meant: Mapping[Shard, str], new: Policy
) -> tuple[tuple[ShardMove, ...], tuple[ShardMove, ...]]:
    first = (ShardMove(*shard, "", idc) for shard, idc in meant.items() if shard not in standing.owners)
    return tuple(first), tuple(moves_to(standing, meant, new))


def _is_new(
    standing: Standing, before: Mapping[Shard, str], assigned: Iterable[ShardMove], moved: Iterable[ShardMove]
) -> bool:
    """Whether anything would happen that is not happening already."""
    ordered = {shard: (it.move.target, it.move.required_by_law) for shard, it in standing.wanted.items()}
    planned = {move.key: (move.to_idc, move.required_by_law) for move in moved}
    return ordered != planned or any(before.get(move.key) != move.to_idc for move in assigned)


def _holding_changes(
    owners: Mapping[str, Mapping[int, str]], meant: Mapping[Shard, str], new: Policy
) -> Iterator[HoldingChange]:
    after: dict[str, set[str]] = {}
    for (code, _), idc in meant.items():
        after.setdefault(code, set()).add(idc)
    for code in new.regions:
        had, has = set(owners.get(code, {}).values()), after[code]
        if had != has:
            yield HoldingChange(code, tuple(sorted(has - had)), tuple(sorted(had - has)))


Problem = tuple[str, str, "Path"]


def _uncovered(owners: Mapping[str, Mapping[int, str]], new: Policy) -> Iterator[Problem]:
    homeless = [code for code in owners if code not in new.regions]
    if homeless:
        message = f"no residency rule covers {shorten(homeless)} any more, but shards of it are assigned"
        yield "UNCOVERED_IN_USE", f"{message}: their rows would have no lawful home", ("residency",)


def _resharded(current: Policy | None, owners: Mapping[str, Mapping[int, str]], new: Policy) -> Iterator[Problem]:
    """A RegionCode's number of shards is fixed: a key's shard would change, and its row be looked for elsewhere.

    What the current policy covers counts as assigned, records or not: the controller may be assigning it right now.
    """
    changed: dict[tuple[str, int], list[str]] = {}
    for code, residency in new.regions.items():
        if current is not None and code in current.regions:
            fixed = current.regions[code].shards
        else:
            fixed = max(owners.get(code, ()), default=-1) + 1
        if fixed and fixed != residency.shards:
            changed.setdefault((residency.rule, fixed), []).append(code)
    numbers = {rule.name: number for number, rule in enumerate(new.document.residency)}
    for (rule, fixed), codes in changed.items():
        shards = new.document.residency[numbers[rule]].shards
        message = f"{shorten(codes)} {'has' if len(codes) == 1 else 'have'} {fixed} shards, rule {rule} says {shards}"
        hint = f"the number is fixed once assigned: write `shards: {fixed}`, in a rule of its own where needed"
        yield "SHARDS_FIXED", f"{message}; {hint}", ("residency", numbers[rule], "shards")


def _staying(stuck: Iterable[Shard], new: Policy) -> Iterator[Problem]:
    """Shards of drained IDCs that no other IDC may have."""
    rules: dict[str, dict[str, int]] = {}
    for code, _ in stuck:
        codes = rules.setdefault(new.regions[code].rule, {})
        codes[code] = codes.get(code, 0) + 1
    for number, rule in enumerate(new.document.residency):
        codes = rules.get(rule.name)
        if codes:
            count = sum(codes.values())
            what = f"{count} shard{'' if count == 1 else 's'} of {shorten(codes)} stay in an IDC that is drained"
            why = f"every IDC under {join(rule.jurisdictions, 'or')} is"
            yield "DRAINED", f"{what}: {why}", ("residency", number, "idcs")


def _finding(
    code: str, message: str, path: Path, loaded: LoadedPolicy | None, severity: Severity = Severity.ERROR
) -> Finding:
    place = loaded.positions.find(path) if loaded else NOWHERE
    return Finding(severity, code, message, format_path(path), *place)
