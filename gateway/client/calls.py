"""One call and all its attempts: choose a gateway, send, learn from what comes back, try again while it makes sense.

The first attempt of a single operation is the path that everything waits on: one future, no task, no timer of its
own. Everything else is behind its failure.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc.aio

from gateway.client import spans
from gateway.client.endpoint import ORIGIN, PURPOSE, TRACEPARENT
from gateway.client.failures import Failed, closed, failed_call, failed_operation, persist
from gateway.client.model import seconds_of
from policy.errors import DeadlineExceeded, InvalidInput, NotOwnedHere

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from gateway.client.connections import Connections
    from gateway.client.endpoint import Endpoint
    from gateway.client.model import ClientSettings
    from gateway.client.routes import Routes
    from regiongate.v1 import row_service_pb2
    from runtime.telemetry.tracing import Tracing

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Work(NamedTuple):
    """One operation, and what all its attempts share."""

    operation: row_service_pb2.Operation
    key: str | int
    purpose: str
    deadline: float
    size: int = 0
    """Bytes, where they are worth counting."""


class Calls:
    """Performs operations and unary calls for the client."""

    def __init__(
        self, routes: Routes, connections: Connections, settings: ClientSettings, tracing: Tracing | None
    ) -> None:
        self._routes = routes
        self._connections = connections
        self._tracing = tracing
        self._timeout = seconds_of(settings.timeout)
        self._attempt_timeout = seconds_of(settings.attempt_timeout)
        self._patience = self._attempt_timeout * 0.9
        """Seconds of silence that make a gateway suspect."""
        self._now = asyncio.get_running_loop().time

    def deadline(self, timeout: timedelta | float | None) -> float:
        """On the loop's clock."""
        return self._now() + (self._timeout if timeout is None else seconds_of(timeout))

    # ---- operations on Exchange -------------------------------------------------------------------------------------

    async def perform(self, name: str, work: Work, traceparent: str) -> row_service_pb2.OperationResult:
        """Performs one operation; the result is not an error.

        Raises:
            RegiongateError: What the last attempt failed with.
        """
        traceparent = traceparent or spans.ambient_traceparent()
        if self._tracing is not None:
            span = spans.start(self._tracing, name, traceparent)
            if span is not None:
                where = work.operation.dataset, work.operation.region_code
                return await spans.cover(span, *where, partial(self._send, work))
        return await self._send(work, traceparent)

    async def _send(self, work: Work, traceparent: str) -> row_service_pb2.OperationResult:
        if traceparent:
            work.operation.traceparent = traceparent
        try:
            return await self._attempt(work, min(work.deadline, self._now() + self._attempt_timeout))
        except Failed as failure:
            failed = failure
        return await persist(partial(self._attempt, work), work.deadline, self._attempt_timeout, failed)

    async def _attempt(self, work: Work, until: float) -> row_service_pb2.OperationResult:
        operation, key, purpose, deadline, size = work
        lane = self._connections.lane_to(self._routes.next_hop(operation.region_code, key))
        try:
            result = await lane.submit(operation, purpose, until, size)
        except Failed as failed:
            # A caller with little patience proves nothing; a gateway that is silent for a whole attempt is left alone.
            if isinstance(failed.error, DeadlineExceeded) and until < deadline:
                self._connections.report(lane.endpoint)
            raise
        if result.HasField("error"):
            failed = failed_operation(result.error)
            if isinstance(failed.error, NotOwnedHere):
                self._routes.learn(operation.region_code, key, failed.error.owner_idc, failed.error.endpoints)
            elif failed.is_transport:
                self._connections.report(lane.endpoint)
            raise failed
        return result

    # ---- unary calls ------------------------------------------------------------------------------------------------

    async def call(
        self,
        method: Callable[[Endpoint], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        *,
        hop: str,
        purpose: str,
        deadline: float,
        traceparent: str = "",
    ) -> _Response:
        """Makes a unary call with its retries, at the IDC or at home.

        Raises:
            RegiongateError: What the last attempt failed with.
        """

        async def attempt(until: float) -> _Response:
            nonlocal hop
            try:
                return await self.call_once(
                    method, request, hop=hop, purpose=purpose, until=until, traceparent=traceparent
                )
            except Failed as failed:
                if isinstance(failed.error, NotOwnedHere) and failed.error.owner_idc:
                    hop = failed.error.owner_idc
                    self._routes.learn_endpoints(hop, failed.error.endpoints)
                raise

        return await persist(attempt, deadline, self.attempt_timeout(deadline))

    def attempt_timeout(self, deadline: float) -> float:
        """Seconds for one attempt of a call that may be long: a caller who gives it time gets at least two."""
        return max(self._attempt_timeout, (deadline - self._now()) / 2)

    async def call_once(
        self,
        method: Callable[[Endpoint], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        *,
        hop: str,
        purpose: str,
        until: float,
        traceparent: str = "",
    ) -> _Response:
        """Makes one attempt; raises `Failed`."""
        if not (purpose.isascii() and purpose.isprintable()):
            raise Failed(InvalidInput("a purpose is printable ASCII", field_name="purpose"))
        endpoint = self._connections.endpoint_to(hop)
        timeout = max(0.0, until - self._now())
        stated = ((ORIGIN, self._connections.origin_for(endpoint)), (PURPOSE, purpose), (TRACEPARENT, traceparent))
        metadata = tuple(pair for pair in stated if pair[1])
        try:
            response = await method(endpoint)(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            failed = failed_call(error, endpoint.address)
            if failed.is_transport or (isinstance(failed.error, DeadlineExceeded) and timeout >= self._patience):
                self._connections.report(endpoint)
            raise failed from None
        except asyncio.CancelledError:
            # Closing a channel cancels its calls: that is an answer to this caller, not a wish of theirs.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise closed() from None
        endpoint.succeed()
        return response

    async def cover(
        self,
        name: str,
        dataset: str,
        region_code: str,
        traceparent: str,
        perform: Callable[[str], Awaitable[_Response]],
    ) -> _Response:
        """Performs something inside a client span, where it is sampled."""
        traceparent = traceparent or spans.ambient_traceparent()
        span = spans.start(self._tracing, name, traceparent)
        if span is None:
            return await perform(traceparent)
        return await spans.cover(span, dataset, region_code, perform)
