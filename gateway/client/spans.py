"""The client's side of a trace.

An application that has a span of its own is followed: its context travels with the call. With a `Tracing`, sampled
calls get a client span, which covers all their attempts. Nothing of a row is noted (law L1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import INVALID_SPAN, SpanKind, get_current_span

from policy.errors import RegiongateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from runtime.telemetry.tracing import Span, Tracing

    _T = TypeVar("_T")


def ambient_traceparent() -> str:
    """The W3C `traceparent` of the span that the application is in; empty when it is in none."""
    span = get_current_span()
    if span is INVALID_SPAN:
        return ""
    return _format(span)


def _format(span: Span) -> str:
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def start(tracing: Tracing | None, name: str, traceparent: str) -> Span | None:
    """A client span for one call, or None when it is not sampled."""
    if tracing is None:
        return None
    return tracing.start(name, kind=SpanKind.CLIENT, traceparent=traceparent, root=True)


async def cover(span: Span, dataset: str, region_code: str, perform: Callable[[str], Awaitable[_T]]) -> _T:
    """Performs a call inside its span, handing on the span's `traceparent`."""
    # Loaded already by whoever made the Tracing; a client without one does not load OpenTelemetry's SDK.
    from runtime.telemetry.tracing import DATASET, REGION_CODE, set_failed  # noqa: PLC0415

    span.set_attribute(DATASET, dataset)
    if region_code:
        span.set_attribute(REGION_CODE, region_code)
    try:
        return await perform(_format(span))
    except RegiongateError as error:
        set_failed(span, error.reason)
        raise
    finally:
        span.end()
