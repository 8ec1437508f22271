"""Builds a trace's tree from its spans and lays it out as lines with IDC names and times.

A span whose parent was not recorded here (the caller's own, or one lost with a killed process) is a root of its own,
so nothing that was recorded stays hidden. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from runtime.telemetry.spans import SpanRecord

_BAR_CELLS = 24
_PREFIX = "regiongate."


@dataclass(frozen=True, slots=True)
class Node:
    """A span and the spans below it, by start time."""

    span: SpanRecord
    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One span, laid out."""

    tree: str
    """Branches and name."""
    place: str
    """IDC and service."""
    offset_ms: float
    """After the start of the trace."""
    duration_ms: float
    bar: str
    details: str
    is_failed: bool


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """What `trace list` shows of one trace."""

    trace_id: str
    start: datetime
    duration_ms: float
    root: str
    idcs: tuple[str, ...]
    spans: int
    status: str


def build_tree(spans: Iterable[SpanRecord]) -> tuple[Node, ...]:
    """The roots of the trace, by start time; a span that was recorded twice counts once."""
    by_id = {span.span_id: span for span in spans}
    children: defaultdict[str, list[SpanRecord]] = defaultdict(list)
    for span in sorted(by_id.values(), key=lambda span: (span.start_ns, span.span_id)):
        is_root = span.parent_id not in by_id or span.parent_id == span.span_id
        children["" if is_root else span.parent_id].append(span)

    def grow(span: SpanRecord) -> Node:
        return Node(span, tuple(grow(child) for child in children[span.span_id]))

    return tuple(grow(root) for root in children[""])


def lay_out(roots: Sequence[Node]) -> list[TraceLine]:
    """One line for each span, in tree order."""
    if not roots:
        return []
    spans = [span for root in roots for span in walk(root)]
    start = min(span.start_ns for span in spans)
    total = max(max(span.end_ns for span in spans) - start, 1)
    lines: list[TraceLine] = []
    for root in roots:
        _add_lines(lines, root, ("", ""), start, total)
    return lines


def walk(node: Node) -> Iterator[SpanRecord]:
    """The span and all below it."""
    yield node.span
    for child in node.children:
        yield from walk(child)


def _add_lines(lines: list[TraceLine], node: Node, branches: tuple[str, str], start: int, total: int) -> None:
    """Adds the span and all below it; `branches` are drawn before its own line and before those below."""
    span = node.span
    lead, below = branches
    lines.append(
        TraceLine(
            tree=f"{lead}{span.name}",
            place=" ".join(filter(None, (span.idc, span.service))),
            offset_ms=(span.start_ns - start) / 1e6,
            duration_ms=span.milliseconds,
            bar=_bar(span.start_ns - start, span.end_ns - start, total),
            details=_details(span),
            is_failed=span.status != "ok",
        )
    )
    for child in node.children:
        is_last = child is node.children[-1]
        drawn = (f"{below}└─ ", f"{below}   ") if is_last else (f"{below}├─ ", f"{below}│  ")
        _add_lines(lines, child, drawn, start, total)


def _bar(begin: int, end: int, total: int) -> str:
    left = min(begin * _BAR_CELLS // total, _BAR_CELLS - 1)
    right = max(-(-end * _BAR_CELLS // total), left + 1)
    return " " * left + "━" * (min(right, _BAR_CELLS) - left)


def _details(span: SpanRecord) -> str:
    parts = [f"failed: {span.status}"] if span.status != "ok" else []
    parts += [
        f"{name.removeprefix(_PREFIX)}={value}" for name, value in span.attributes.items() if name != "regiongate.idc"
    ]
    if span.links and not span.parent_id:
        # What began it, or ended it, has a trace of its own.
        parts.append(f"linked to trace {', '.join(dict.fromkeys(link[:8] for link in span.links))}")
    elif span.links:
        parts.append(f"shared with {len(span.links)} other call{'s' if len(span.links) > 1 else ''}")
    return "  ".join(parts)


def summarise(spans: Iterable[SpanRecord]) -> list[TraceSummary]:
    """One summary for each trace, newest first."""
    traces: defaultdict[str, list[SpanRecord]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    return sorted(
        (_summary(trace_id, trace) for trace_id, trace in traces.items()), key=lambda s: s.start, reverse=True
    )


def _summary(trace_id: str, spans: Sequence[SpanRecord]) -> TraceSummary:
    first = min(spans, key=lambda span: (bool(span.parent_id), span.start_ns))
    begin, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
    failures = [span.status for span in sorted(spans, key=lambda span: span.start_ns) if span.status != "ok"]
    return TraceSummary(
        trace_id=trace_id,
        start=first.start,
        duration_ms=(end - begin) / 1e6,
        root=first.name,
        idcs=tuple(dict.fromkeys(span.idc for span in sorted(spans, key=lambda s: s.start_ns) if span.idc)),
        spans=len(spans),
        status=failures[0] if failures else "ok",
    )
