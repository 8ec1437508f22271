"""One kept `Exchange` stream to one gateway, shared by all calls that go there.

Calls are packed without timers: whatever has been submitted while the last message was being written goes into the
next one. Answers come in any order and are told apart by id. A lane is broken once and for all when its stream ends;
then every call on it fails as unreachable, and whoever wants to goes on with another lane. Everything has an end: each
call carries a deadline, and one timer, set to the earliest of them, lets go of those that have passed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeAlias

import grpc
import grpc.aio

from gateway.client.failures import Failed, closed, failed_call, unreachable
from policy.errors import DeadlineExceeded, LimitReached
from regiongate.v1 import row_service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.client.endpoint import Endpoint
    from gateway.client.model import ClientSettings

_MAX_MESSAGE_BYTES: Final = 1 << 20
"""A message is closed once it holds this much, so that one of large rows stays near the size of its largest."""

_SWEEP_PAUSE: Final = 0.005
"""Shortest time between two searches for calls whose deadline has passed."""

_Stream: TypeAlias = "grpc.aio.StreamStreamCall[row_service_pb2.ExchangeRequest, row_service_pb2.ExchangeResponse]"


class _Pending:
    """One submitted call."""

    __slots__ = ("deadline", "future", "operation", "size")

    def __init__(
        self,
        operation: row_service_pb2.Operation,
        deadline: float,
        future: asyncio.Future[row_service_pb2.OperationResult],
        size: int,
    ) -> None:
        self.operation = operation
        self.deadline = deadline
        self.future = future
        self.size = size


class Lane:
    """A stream to a gateway, open from creation until it breaks or is closed."""

    def __init__(
        self,
        endpoint: Endpoint,
        origin: str,
        settings: ClientSettings,
        on_end: Callable[[Lane], None],
    ) -> None:
        """Opens the stream.

        Args:
            endpoint: The gateway.
            origin: The client's home IDC, where the gateway is of another one.
            settings: Limits.
            on_end: Called once, when the lane takes no more calls.
        """
        self.endpoint = endpoint
        self.origin = origin
        self.is_open = True
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._max_pending = settings.max_in_flight
        self._max_operations = settings.max_message_operations
        self._pending: dict[int, _Pending] = {}
        self._queues: dict[str, list[int]] = {}
        """Purpose -> ids not yet sent, oldest first; a message has one purpose."""
        self._next_id = 0
        self._wake: asyncio.Future[None] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._stream: _Stream = endpoint.exchange(origin)
        self._writer = self._loop.create_task(self._write())
        self._reader = self._loop.create_task(self._read())

    @property
    def is_idle(self) -> bool:
        """Whether no call waits for an answer."""
        return not self._pending

    def submit(
        self, operation: row_service_pb2.Operation, purpose: str, deadline: float, size: int = 0
    ) -> asyncio.Future[row_service_pb2.OperationResult]:
        """Sends an operation; the future brings its result, or `Failed`.

        Args:
            operation: Its id is set here; until the future is done it belongs to the lane.
            purpose: Stated for it.
            deadline: On the loop's clock.
            size: Bytes, where they are worth counting.
        """
        pending = self._pending
        if len(pending) >= self._max_pending:
            raise Failed(LimitReached("too many calls wait for one gateway", limit="max_in_flight"))
        future: asyncio.Future[row_service_pb2.OperationResult] = self._loop.create_future()
        if not self.is_open:
            future.set_exception(unreachable(self.endpoint.address, "stream ended"))
            return future
        self._next_id = number = self._next_id + 1
        operation.id = number
        pending[number] = _Pending(operation, deadline, future, size)
        queue = self._queues.get(purpose)
        if queue is None:
            queue = self._queues[purpose] = []
        queue.append(number)
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)
        if self._sweep is None or deadline < self._sweep_at:
            self._sweep_by(deadline)
        return future

    async def _write(self) -> None:
        stream = self._stream
        try:
            while True:
                while not self._queues:
                    self._wake = self._loop.create_future()
                    await self._wake
                request = self._pack()
                if request is not None:
                    await stream.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The reader learns why, and tells everybody.
            stream.cancel()

    def _pack(self) -> row_service_pb2.ExchangeRequest | None:
        """Takes the oldest calls of the purpose whose turn it is; None when nobody waits for them any more."""
        purpose, queue = next(iter(self._queues.items()))
        del self._queues[purpose]
        request = row_service_pb2.ExchangeRequest(purpose=purpose)
        append = request.operations.append
        pending = self._pending
        latest, room, taken = 0.0, _MAX_MESSAGE_BYTES, 0
        for number in queue:
            entry = pending.get(number)
            taken += 1
            if entry is None or entry.future.done():
                pending.pop(number, None)
                continue
            append(entry.operation)
            latest = max(latest, entry.deadline)
            room -= entry.size
            if len(request.operations) >= self._max_operations or room <= 0:
                break
        if taken < len(queue):
            # To the end of the line: purposes take turns.
            self._queues[purpose] = queue[taken:]
        if not latest:
            return None
        request.timeout_ms = max(1, int((latest - self._loop.time()) * 1000))
        return request

    async def _read(self) -> None:
        stream = self._stream
        address = self.endpoint.address
        failed = unreachable(address, "stream ended")
        try:
            while True:
                response = await stream.read()
                if not isinstance(response, row_service_pb2.ExchangeResponse):
                    break
                self.endpoint.succeed()
                pending = self._pending
                for result in response.results:
                    entry = pending.pop(result.id, None)
                    if entry is not None and not entry.future.done():
                        entry.future.set_result(result)
        except grpc.aio.AioRpcError as error:
            failed = failed_call(error, address)
        except asyncio.CancelledError:
            # Either this task is being cancelled, by `close`, or the stream was cancelled from below.
            if not stream.cancelled():
                raise
        finally:
            self._end(failed)

    def _end(self, failed: Failed) -> None:
        if not self.is_open:
            return
        self.is_open = False
        self._stream.cancel()
        self._writer.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
        waiting, self._pending = self._pending, {}
        self._queues.clear()
        if failed.is_transport:
            self.endpoint.fail()
        for entry in waiting.values():
            if not entry.future.done():
                # Each its own: an exception that is raised in many places mixes their tracebacks.
                entry.future.set_exception(Failed(failed.error, failed.retry_after))
        self._on_end(self)

    def _sweep_by(self, deadline: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_at = max(deadline, self._loop.time() + _SWEEP_PAUSE)
        self._sweep = self._loop.call_at(self._sweep_at, self._drop_expired)

    def _drop_expired(self) -> None:
        self._sweep = None
        now = self._loop.time()
        expired = [number for number, entry in self._pending.items() if entry.deadline <= now]
        for number in expired:
            entry = self._pending.pop(number)
            if not entry.future.done():
                entry.future.set_exception(Failed(DeadlineExceeded("no answer in time")))
        if self._pending:
            self._sweep_by(min(entry.deadline for entry in self._pending.values()))

    async def close(self) -> None:
        """Ends the stream, and fails the calls that still wait."""
        self._end(closed())
        self._reader.cancel()
        await asyncio.gather(self._reader, self._writer, return_exceptions=True)
