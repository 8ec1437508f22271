"""The way of a call whose answer is a stream, as `gateway.ladder` is that of a unary one.

A body is a plain function of a request and a `StreamCall`, which sends messages one by one: sending waits for the other
side's flow control, but not for ever. When the gateway stops, a stream ends at once instead of when it is done: whoever
asked goes on elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from gateway.call_metrics import CALLS, STREAMS_OPEN
from gateway.operations import CallContext
from gateway.status import abort, status_of
from policy.errors import DeadlineExceeded, RegiongateError, Unavailable
from runtime.telemetry.tracing import set_failed, traceparent_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import grpc.aio

    from gateway.admission import Admission
    from gateway.ladder import Ladder, OnLadder
    from runtime.telemetry.tracing import Span

    ServicerContext = grpc.aio.ServicerContext[Any, Any]

SEND_SECONDS: Final = 30.0
"""How long the other side may take no message."""

Service = TypeVar("Service", bound="OnLadder")
Request = TypeVar("Request")
Response = TypeVar("Response")


class StreamCall(Generic[Response]):
    """One admitted call."""

    __slots__ = ("_grpc", "context", "span")

    def __init__(self, context: CallContext, span: Span | None, grpc_context: ServicerContext) -> None:
        self.context = context
        """Its deadline is the caller's, or what a short call may take: for what comes before the first message."""
        self.span = span
        self._grpc = grpc_context

    def describe(self, attributes: Mapping[str, str | int]) -> None:
        """Says in its span what it is about."""
        if self.span is not None:
            self.span.set_attributes(dict(attributes))

    async def send(self, message: Response) -> None:
        """Sends a message; raises `DeadlineExceeded` when the other side takes none for too long."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._grpc.write(message)
        except TimeoutError:
            raise DeadlineExceeded(f"no message was taken for {SEND_SECONDS:g} s") from None


def stream(
    body: Callable[[Service, Request, StreamCall[Response]], Awaitable[None]],
) -> Callable[[Service, Request, ServicerContext], Awaitable[None]]:
    """Makes a gRPC method of a function that sends messages and returns, or raises an error of `policy.errors`."""
    name = body.__name__
    gauge = STREAMS_OPEN.labels(name)

    @functools.wraps(body)
    async def handler(self: Service, request: Request, context: ServicerContext) -> None:
        admission = self.ladder.admission
        call: StreamCall[Response] | None = None
        status = "CANCELLED"
        try:
            call = _enter(self.ladder, name, context)
            gauge.inc()
            await _until_stopping(admission, body(self, request, call))
            status = "OK"
        except Exception as error:  # noqa: BLE001 (this is where every error gets its status)
            status = status_of(error).name
            reason = error.reason if isinstance(error, RegiongateError) else RegiongateError.reason
            set_failed(call.span if call else None, reason)
            await abort(context, error, where=name, traceparent=call.context.traceparent if call else "")
        finally:
            if call is not None:
                gauge.dec()
                admission.release_stream()
                if call.span is not None:
                    call.span.end()
            CALLS.labels(name, status).inc()

    return handler


def _enter(ladder: Ladder, name: str, context: ServicerContext) -> StreamCall[Any]:
    """Identifies and admits a call; raises as `Ladder.enter` does."""
    caller = ladder.side.identify(context)
    ladder.admission.admit_stream()
    span = ladder.start_span(name, caller.traceparent)
    shared = CallContext(
        ladder.admission.deadline(context),
        caller.purpose,
        caller.origin_idc,
        caller.ingress_idc,
        traceparent_of(span, caller.traceparent),
    )
    return StreamCall(shared, span, context)


async def _until_stopping(admission: Admission, body: Awaitable[None]) -> None:
    """Runs a body to its end; raises `Unavailable` when the gateway stops first."""
    running = asyncio.ensure_future(body)
    stopping = asyncio.ensure_future(admission.draining.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise Unavailable("this gateway is stopping")
        running.result()
    finally:
        stopping.cancel()
        if running.cancel():
            await asyncio.wait((running,))
