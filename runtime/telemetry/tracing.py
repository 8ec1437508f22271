"""Traces on opentelemetry's SDK, made cheap enough to leave on.

The sampling decision is ours and comes first: a call that is not sampled costs one string test or one random number
and gets None for a span (a sampled-out span of the SDK costs twenty times as much). A call that brings a
`traceparent` follows it; one without starts a trace with the set probability where the caller allows a root.

Spans go to a collector when the `OTEL_*` variables say so, otherwise to JSON lines in a folder, otherwise nowhere. The
queue is bounded: when it is full, spans are dropped, never calls.

Attributes name places, rules, revisions and counts, never a key or a value of a row (law L1).
"""

from __future__ import annotations

import os
import re
from random import random
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from runtime.telemetry.spans import SpanFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Span", "SpanKind", "Tracing", "is_sampled", "set_failed", "trace_id_of", "traceparent_of"]

IDC: Final = "regiongate.idc"
DATASET: Final = "regiongate.dataset"
REGION_CODE: Final = "regiongate.region_code"
RULE: Final = "regiongate.rule"
POLICY_REVISION: Final = "regiongate.policy_revision"
ROWS: Final = "regiongate.rows"
OUTCOME: Final = "regiongate.outcome"
PEER_IDC: Final = "regiongate.peer_idc"

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?", re.ASCII)
_SAMPLED_DIGITS: Final = frozenset("13579bdf")
_FLAGS_END: Final = 54
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)

_QUEUE_SPANS = 4096
_BATCH_SPANS = 512
_FLUSH_MILLIS = 500
_MAX_LINKS = 32


def is_sampled(traceparent: str) -> bool:
    """Whether the caller records this trace; the sampled flag is one bit of the last two digits."""
    return len(traceparent) > _FLAGS_END and traceparent[_FLAGS_END] in _SAMPLED_DIGITS


def traceparent_of(span: Span | None, fallback: str = "") -> str:
    """The W3C `traceparent` that children of the span carry; `fallback` (what came in) when there is no span."""
    if span is None:
        return fallback
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_id_of(traceparent: str) -> str:
    """The trace's id, or an empty string."""
    context = _parse(traceparent)
    return f"{context.trace_id:032x}" if context else ""


def set_failed(span: Span | None, reason: str) -> None:
    """Marks a span as failed by an UPPER_SNAKE reason; never by an error's text."""
    if span is not None:
        span.set_status(StatusCode.ERROR, reason)


def link(span: Span | None, traceparent: str) -> None:
    """Says that something else, in another trace, has to do with the span."""
    context = _parse(traceparent)
    if span is not None and context is not None:
        span.add_link(context)


def _parse(traceparent: str) -> SpanContext | None:
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


class Tracing:
    """Starts the spans of one process."""

    def __init__(self, service: str, idc: str, sample_ratio: float, directory: Path | None, process: str = "") -> None:
        """Sets up where spans go.

        Args:
            service: gateway, controller, client, ...
            idc: The process's IDC; empty when it has none.
            sample_ratio: Share of the roots that are recorded, 0 to 1; `OTEL_TRACES_SAMPLER` and its `_ARG` win.
            directory: Folder for JSON lines, when no collector is named.
            process: Names the file in that folder; `<service>-<idc>` when empty.
        """
        exporter = _make_exporter(service, idc, directory, process or "-".join(filter(None, (service, idc))))
        self._ratio = _choose_ratio(sample_ratio) if exporter else 0.0
        self._provider: TracerProvider | None = None
        self._tracer = None
        if exporter:
            self._provider = TracerProvider(
                sampler=ALWAYS_ON,
                resource=Resource.create({"service.name": f"regiongate-{service}", IDC: idc}),
                shutdown_on_exit=False,
            )
            self._provider.add_span_processor(BatchSpanProcessor(exporter, _QUEUE_SPANS, _FLUSH_MILLIS, _BATCH_SPANS))
            self._tracer = self._provider.get_tracer("regiongate")

    @property
    def is_on(self) -> bool:
        """Whether any span can be recorded."""
        return self._tracer is not None

    def start(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        traceparent: str = "",
        root: bool = False,
        is_wanted: bool = False,
        attributes: Mapping[str, str | int | float | bool] | None = None,
        links: Sequence[str] = (),
    ) -> Span | None:
        """Starts a span when the call is sampled; the caller must `end()` it.

        Args:
            name: What is done, without names of things: `gateway.serve`.
            kind: SERVER and CLIENT at the two ends of a call, else INTERNAL.
            traceparent: The parent's, as it came in.
            root: Whether a new trace may start here when there is no parent.
            is_wanted: Whether that is recorded in any case, and not only now and then.
            attributes: See the constants of this module.
            links: Traceparents of other calls that this work is shared with; the first 32 are kept.
        """
        if traceparent:
            if not is_sampled(traceparent):
                return None
        elif not root or (not is_wanted and random() >= self._ratio):  # noqa: S311 (sampling, not secrecy)
            return None
        if self._tracer is None:
            return None
        parent = _parse(traceparent) if traceparent else None
        if traceparent and parent is None and not root:
            return None
        return self._tracer.start_span(
            name,
            context=_context(parent),
            kind=kind,
            attributes=attributes,
            links=[Link(context) for link in links[:_MAX_LINKS] if (context := _parse(link))],
            record_exception=False,
            set_status_on_exception=False,
        )

    def shutdown(self) -> None:
        """Writes what is queued and stops; blocks for a few seconds at most."""
        if self._provider:
            self._provider.shutdown()


def _context(parent: SpanContext | None) -> Context:
    if parent is None:
        return Context()
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _choose_ratio(setting: float) -> float:
    match os.environ.get("OTEL_TRACES_SAMPLER", "").removeprefix("parentbased_"):
        case "always_on":
            return 1.0
        case "always_off":
            return 0.0
        case "traceidratio":
            return float(os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1"))
        case _:
            return setting


def _make_exporter(service: str, idc: str, directory: Path | None, process: str) -> SpanExporter | None:
    choice = os.environ.get("OTEL_TRACES_EXPORTER", "").lower()
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or choice == "none":
        return None
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if choice == "otlp" or any(os.environ.get(name) for name in endpoints):
        # Imported where it is used: the exporter takes 100 ms to load, and most processes never need it.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        return OTLPSpanExporter()
    if directory is None:
        return None
    return SpanFile(directory, process, service, idc)
