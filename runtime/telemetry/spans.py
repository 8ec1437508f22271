"""Spans as JSON lines in a folder: one file for each process, written whole lines at a time, rotated once.

This is what `regiongate trace show` reads, and any text tool can. A collector takes its place where `OTEL_*` variables
name one (runtime.telemetry.tracing).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode, format_span_id, format_trace_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

ROTATE_BYTES = 32 * 1024 * 1024
"""A file that has reached this size is moved to `<name>.jsonl.1`, replacing the one before."""


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One finished span."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty at the root."""
    name: str
    kind: str
    service: str
    idc: str
    start_ns: int
    """Nanoseconds since 1970."""
    end_ns: int
    status: str = "ok"
    """`ok`, or the reason of a failure."""
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    links: tuple[str, ...] = ()
    """`trace_id-span_id` of what else it worked for."""

    @property
    def start(self) -> datetime:
        """When it started."""
        return datetime.fromtimestamp(self.start_ns / 1e9, UTC)

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6


_FIELDS = frozenset(f.name for f in fields(SpanRecord))


class SpanFile(SpanExporter):
    """Appends spans to `<directory>/<process>.jsonl`."""

    def __init__(self, directory: Path, process: str, service: str, idc: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / f"{process}.jsonl"
        self._service = service
        self._idc = idc

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes the spans as one append, so that lines of several writers never mix."""
        lines = [json.dumps(asdict(self._record(span)), separators=(",", ":"), default=str) for span in spans]
        try:
            self._append(("\n".join(lines) + "\n").encode())
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _append(self, data: bytes) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(handle, data)
            is_full = os.fstat(handle).st_size >= ROTATE_BYTES
        finally:
            os.close(handle)
        if is_full:
            self._path.replace(self._path.with_suffix(".jsonl.1"))

    def _record(self, span: ReadableSpan) -> SpanRecord:
        context = span.context
        return SpanRecord(
            trace_id=format_trace_id(context.trace_id if context else 0),
            span_id=format_span_id(context.span_id if context else 0),
            parent_id=format_span_id(span.parent.span_id) if span.parent else "",
            name=span.name,
            kind=span.kind.name.lower(),
            service=self._service,
            idc=self._idc,
            start_ns=span.start_time or 0,
            end_ns=span.end_time or 0,
            status=(span.status.description or "error") if span.status.status_code is StatusCode.ERROR else "ok",
            attributes=dict(span.attributes or {}),
            links=tuple(
                f"{format_trace_id(link.context.trace_id)}-{format_span_id(link.context.span_id)}"
                for link in span.links
            ),
        )


def read_spans(directory: Path, trace_id: str = "") -> Iterator[SpanRecord]:
    """Yields the spans of one trace (of all traces when empty) in the order they were written, file by file.

    A line that is not a span, such as the last one of a process that was killed, is passed over.
    """
    for path in sorted(directory.glob("*.jsonl*")):
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if trace_id not in line:
                    continue
                record = _parse(line)
                if record is not None and (not trace_id or record.trace_id == trace_id):
                    yield record


def _parse(line: str) -> SpanRecord | None:
    try:
        data = cast("dict[str, Any]", json.loads(line))
        known: dict[str, Any] = {name: value for name, value in data.items() if name in _FIELDS}
        known["links"] = tuple(known.get("links", ()))
        return SpanRecord(**known)
    except (ValueError, TypeError, AttributeError):
        return None
