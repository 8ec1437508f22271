"""A plan as lines for the person who decides on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.wording import join, shorten
from regiongate.cli.policy_calls import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from regiongate.v1 import policy_service_pb2 as pb

SHOWN_LINES = 20
_UNITS = ("B", "kB", "MB", "GB", "TB")


def plan_lines(answer: pb.PlanPolicyResponse, expectations: int) -> Iterator[str]:
    """Everything that the plan would do, and what it costs."""
    yield f"from revision {answer.parent}" if answer.parent else "the first policy"
    if expectations:
        yield f"expect: all {counted(expectations, 'entry').replace('entrys', 'entries')} of the document hold"
    for change in answer.access_changes:
        yield f"access {_direction(change.sentence)}: {change.sentence}"
        yield f"    for example: {change.example}"
    for name in answer.schema_changes:
        yield f"schema: new {name}"
    yield from _cut(_holdings(answer.holding_changes))
    yield from _cut(_assigned(answer.assigned))
    yield from _cut(_moved(answer.moved))
    yield from _cost(answer)


def _direction(sentence: str) -> str:
    """Whether somebody gains access, loses it, or gets it otherwise; the law's own changes are none of these."""
    if not sentence.startswith("from "):
        return "law"
    outcome = sentence.partition(": ")[2]
    if outcome.startswith("denied"):
        return "lost"
    return "gained" if outcome.endswith(", was denied") or ", was " not in outcome else "changed"


def _holdings(changes: Iterable[pb.HoldingChange]) -> list[str]:
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for change in changes:
        alike.setdefault((tuple(change.starts), tuple(change.stops)), []).append(change.region_code)
    lines: list[str] = []
    for (starts, stops), codes in alike.items():
        parts = [f"{join(idcs)} {word}" for idcs, word in ((starts, "will hold"), (stops, "will hold no more")) if idcs]
        lines.append(f"holding: {'; '.join(parts)} rows of {shorten(codes)}")
    return lines


def _assigned(changes: Iterable[pb.ShardChange]) -> list[str]:
    return [f"assigned: {what} to {mine[0].to_idc}" for what, mine in _grouped(changes)]


def _moved(changes: Iterable[pb.ShardChange]) -> list[str]:
    return [
        f"moved: {what} from {mine[0].from_idc} to {mine[0].to_idc}{size_text(mine)}"
        + (" (the law demands it)" if mine[0].required_by_law else "")
        for what, mine in _grouped(changes)
    ]


def _grouped(changes: Iterable[pb.ShardChange]) -> list[tuple[str, list[pb.ShardChange]]]:
    """The changes by RegionCode and pair of IDCs, or by pair alone where that would be too many lines."""
    codes: dict[tuple[bool, str, str, str], list[pb.ShardChange]] = {}
    pairs: dict[tuple[bool, str, str], list[pb.ShardChange]] = {}
    for change in changes:
        pair = (not change.required_by_law, change.from_idc, change.to_idc)
        codes.setdefault((pair[0], change.region_code, *pair[1:]), []).append(change)
        pairs.setdefault(pair, []).append(change)
    groups = codes if len(codes) <= SHOWN_LINES else pairs
    return [
        (f"{counted(len(mine))} of {shorten({change.region_code for change in mine})}", mine)
        for _, mine in sorted(groups.items(), key=lambda item: item[0])
    ]


def size_text(changes: list[pb.ShardChange]) -> str:
    """How much there is of the shards, where all of them are known."""
    if not all(change.HasField("rows") for change in changes):
        return ""
    rows, size = sum(change.rows for change in changes), sum(change.bytes for change in changes)
    return f", {counted(rows, 'row')}, {bytes_text(size)}"


def _cost(answer: pb.PlanPolicyResponse) -> Iterator[str]:
    if answer.unreachable:
        yield f"not known: how much there is to copy from {join(answer.unreachable)}, which cannot be reached"
    if not answer.moved:
        return
    total = f"in all: {counted(len(answer.moved))} to move{size_text(list(answer.moved))}"
    if answer.HasField("estimated_seconds"):
        total += f"; about {duration_text(answer.estimated_seconds)}, as fast as earlier moves have copied"
    yield total


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN_LINES
    return [*lines[:SHOWN_LINES], f"    and {more} lines more (-o json shows all)"] if more > 0 else lines


def bytes_text(size: float) -> str:
    """A size, as a person says it."""
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"


def duration_text(seconds: float) -> str:
    """A duration, as a person says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
