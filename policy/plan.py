"""What applying a policy would do, before it is done: shards assigned and moved, schema and access changed.

The plan is a pure function of the current policy, the owners there are and the new policy; the executor has no choice
left. What cannot be done at all is an error finding; nobody applies a plan that has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from policy.assignment import assign
from policy.changes import access_changes, schema_difference
from policy.findings import Finding, Severity
from policy.report import NOWHERE, format_path
from policy.wording import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from policy.compile import Policy
    from policy.loading import LoadedPolicy
    from policy.report import Path


class ShardMove(NamedTuple):
    """A shard that gets an owner (`from_idc` is empty) or another one."""

    region_code: str
    shard: int
    from_idc: str
    to_idc: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one policy would set in motion."""

    assigned: tuple[ShardMove, ...]
    """First owners."""
    moved: tuple[ShardMove, ...]
    schema_changes: tuple[str, ...]
    """New datasets and columns, as `dataset` or `dataset.column`."""
    access_changes: tuple[str, ...]
    """One sentence each."""
    findings: tuple[Finding, ...]

    @property
    def is_possible(self) -> bool:
        """Whether nothing forbids applying it."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def make_plan(
    current: Policy | None,
    assignments: Mapping[tuple[str, int], str],
    new: Policy,
    loaded: LoadedPolicy | None = None,
) -> Plan:
    """Plans the step from `current` to `new`.

    Args:
        current: The policy in force; None before the first.
        assignments: Owner of each shard that has one.
        new: The policy to apply.
        loaded: Where `new` comes from: findings then carry their places.
    """
    owners: dict[str, dict[int, str]] = {}
    for (region_code, shard), idc in assignments.items():
        owners.setdefault(region_code, {})[shard] = idc
    schema = schema_difference(current, new)
    problems = [
        *_uncovered(owners, new),
        *_resharded(current, owners, new),
        *(("SCHEMA_CHANGE", message, path) for path, message in schema.refused),
    ]
    moves = tuple(_moves(owners, new))
    return Plan(
        assigned=tuple(move for move in moves if not move.from_idc),
        moved=tuple(move for move in moves if move.from_idc),
        schema_changes=schema.added,
        access_changes=access_changes(current, new),
        findings=tuple(_finding(code, message, path, loaded) for code, message, path in problems),
    )


def _moves(owners: Mapping[str, Mapping[int, str]], new: Policy) -> Iterator[ShardMove]:
    for code, residency in new.regions.items():
        mine = owners.get(code, {})
        for shard, idc in enumerate(assign(residency.weights, residency.shards, mine)):
            if mine.get(shard, "") != idc:
                yield ShardMove(code, shard, mine.get(shard, ""), idc)


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


def _finding(code: str, message: str, path: Path, loaded: LoadedPolicy | None) -> Finding:
    place = loaded.positions.find(path) if loaded else NOWHERE
    return Finding(Severity.ERROR, code, message, format_path(path), *place)
