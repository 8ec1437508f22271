"""The way of every call, in one readable ladder: who calls, until when, is there room, do it, tell how it ended.

A service's methods are plain functions of a request and a `Call`; `unary` puts them on the ladder. This runs for every
call, so it holds no context manager, writes no log line for what goes well, and starts a span only for a sampled call.
"""

from __future__ import annotations

import functools
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gateway.call_metrics import MethodMetrics
from gateway.operations import CallContext
from gateway.status import abort, status_of
from policy.errors import RegiongateError
from runtime.telemetry.tracing import IDC, SpanKind, set_failed, traceparent_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import grpc.aio

    from gateway.admission import Admission
    from gateway.identity import Side
    from runtime.telemetry.tracing import Span, Tracing

    ServicerContext = grpc.aio.ServicerContext[Any, Any]


class Call:
    """One admitted call."""

    __slots__ = ("context", "grpc", "operations", "span", "traceparent")

    def __init__(self, context: CallContext, span: Span | None, grpc_context: ServicerContext) -> None:
        self.context = context
        self.span = span
        self.traceparent = context.traceparent
        """What its operations' spans are children of."""
        self.grpc = grpc_context
        self.operations = 1
        """How many it counts for."""


class Ladder:
    """What all calls of one listener share."""

    def __init__(self, admission: Admission, side: Side, tracing: Tracing, idc: str) -> None:
        self.admission = admission
        self.side = side
        self._tracing = tracing
        self._attributes = {IDC: idc}

    def enter(self, method: str, context: ServicerContext) -> Call:
        """Identifies and admits a call. Raises `InvalidInput`, `AccessDenied`, `Unavailable` or `LimitReached`."""
        caller = self.side.identify(context)
        admission = self.admission
        admission.admit()
        span = self.start_span(method, caller.traceparent)
        traceparent = caller.traceparent if span is None else traceparent_of(span)
        deadline = admission.deadline(context)
        shared = CallContext(deadline, caller.purpose, caller.origin_idc, caller.ingress_idc, traceparent)
        return Call(shared, span, context)

    def start_span(self, method: str, traceparent: str) -> Span | None:
        """The server's span of a call, where it is sampled."""
        return self._tracing.start(
            method, kind=SpanKind.SERVER, traceparent=traceparent, root=True, attributes=self._attributes
        )

    def admit_more(self, call: Call, operations: int) -> None:
        """Lets a call count for so many operations; raises `LimitReached`."""
        more = operations - call.operations
        if more > 0:
            self.admission.admit(more)
            call.operations = operations

    def leave(self, call: Call) -> None:
        """Ends a call that `enter` has admitted."""
        self.admission.release(call.operations)
        if call.span is not None:
            call.span.end()


class OnLadder(Protocol):
    """A service whose methods are on a ladder."""

    @property
    def ladder(self) -> Ladder:
        """The one of its listener."""
        ...


Service = TypeVar("Service", bound=OnLadder)
Request = TypeVar("Request")
Response = TypeVar("Response")


def unary(
    body: Callable[[Service, Request, Call], Awaitable[Response]],
) -> Callable[[Service, Request, ServicerContext], Awaitable[Response]]:
    """Makes a gRPC method of a function that returns an answer or raises an error of `policy.errors`."""
    name = body.__name__
    metrics = MethodMetrics(name)

    @functools.wraps(body)
    async def handler(self: Service, request: Request, context: ServicerContext) -> Response:
        began = perf_counter()
        call: Call | None = None
        status = None
        try:
            call = self.ladder.enter(name, context)
            return await body(self, request, call)
        except Exception as error:  # noqa: BLE001 (this is where every error gets its status)
            status = status_of(error)
            reason = error.reason if isinstance(error, RegiongateError) else RegiongateError.reason
            set_failed(call.span if call else None, reason)
            await abort(context, error, where=name, traceparent=call.traceparent if call else "")
        finally:
            if call is not None:
                self.ladder.leave(call)
            metrics.ended(status, perf_counter() - began)

    return handler
