"""One kept `Exchange` stream to one gateway of another IDC.

What arrives while a message is being written goes with the next one: a hop costs one message for many operations. A
unit (the operations of one call for one IDC) is never split over messages. When the stream ends, whatever has no answer
goes back to `gateway.peers` with the knowledge whether it had been sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import structlog

from gateway import metrics
from gateway.limits import MAX_BATCH_ROWS, Sweep
from gateway.operations import Action
from gateway.values import fill_cells, set_key
from policy.errors import DeadlineExceeded, LimitReached, RegiongateError
from regiongate.v1.row_service_pb2 import ExchangeRequest, ExchangeResponse, OperationResult
from regiongate.v1.row_service_pb2_grpc import RowServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.limits import PeerSettings
    from gateway.operations import RowOperation
    from policy.records import GatewayRecord
    from regiongate.v1.row_service_pb2 import Operation

log = structlog.get_logger("regiongate.gateway.peers")

INGRESS_METADATA = "x-regiongate-ingress"
ORIGIN_METADATA = "x-regiongate-origin"

Stream = grpc.aio.StreamStreamCall[Any, Any]


class Unit:
    """Operations of one call that go to one IDC together, and where their results go."""

    __slots__ = (
        "attempts",
        "deadline",
        "future",
        "missing",
        "operations",
        "purpose",
        "results",
        "traceparents",
        "was_sent",
    )

    def __init__(
        self, operations: Sequence[RowOperation], traceparents: Sequence[str], purpose: str, deadline: float
    ) -> None:
        self.operations = operations
        self.traceparents = traceparents
        """One for each operation; empty where it is not traced."""
        self.purpose = purpose
        self.deadline = deadline
        self.future: asyncio.Future[list[OperationResult] | RegiongateError] = (
            asyncio.get_running_loop().create_future()
        )
        self.results: list[OperationResult | None] = []
        self.missing = 0
        self.attempts = 0
        self.was_sent = False

    @property
    def is_repeatable(self) -> bool:
        """Whether sending it again can do no harm."""
        return not self.was_sent or all(
            operation.action is Action.GET or operation.request_id for operation in self.operations
        )

    def begin(self) -> None:
        """Forgets what an attempt before has brought."""
        self.results = [None] * len(self.operations)
        self.missing = len(self.operations)
        self.attempts += 1

    def take(self, index: int, result: OperationResult) -> None:
        """Takes one result, and answers the caller with the last one."""
        self.results[index] = result
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(cast("list[OperationResult]", self.results))

    def fail(self, error: RegiongateError) -> None:
        """Ends all of its operations with one error."""
        if not self.future.done():
            self.future.set_result(error)


class Link:
    """The stream, what waits for it, and what it has not answered yet."""

    def __init__(
        self,
        record: GatewayRecord,
        channel: grpc.aio.Channel,
        metadata: Sequence[tuple[str, str]],
        settings: PeerSettings,
        *,
        is_listed: Callable[[], bool],
        on_broken: Callable[[Link, list[Unit]], None],
    ) -> None:
        """Starts to open the stream at once.

        Args:
            record: The gateway to talk to.
            channel: To its peer listener; closed with the link.
            metadata: Of the stream.
            settings: Limits.
            is_listed: Whether the gateway is still among the live ones; a link to one that is not is given up.
            on_broken: Gets the units without an answer when the stream has ended; called once.
        """
        self.record = record
        self.channel = channel
        self.is_usable = True
        self.was_open = False
        self._metadata = tuple(metadata)
        self._settings = settings
        self._is_listed = is_listed
        self._on_broken = on_broken
        self._queues: dict[str, deque[Unit]] = {}
        self._in_flight: dict[int, tuple[Unit, int]] = {}
        self._queued = 0
        self._next_id = 1
        self._wake = asyncio.Event()
        self._sweep = Sweep(self._expire)
        self._task = asyncio.create_task(self._run(), name=f"peer-{record.idc}")

    def submit(self, unit: Unit) -> None:
        """Sends a unit with the next message that has room for it."""
        if self._queued + len(self._in_flight) + len(unit.operations) > self._settings.max_in_flight:
            unit.fail(LimitReached(f"too many operations wait for {self.record.idc}", limit="peer_operations"))
            return
        unit.begin()
        queue = self._queues.get(unit.purpose)
        if queue is None:
            queue = self._queues[unit.purpose] = deque()
        queue.append(unit)
        self._queued += len(unit.operations)
        self._wake.set()
        self._sweep.wake()

    async def close(self) -> None:
        """Ends the stream; what has no answer is given back."""
        self._task.cancel()
        await asyncio.wait({self._task})

    # ---- the stream -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._connect()
            # The generated type of the stub is that of the blocking one.
            stub = cast("Any", RowServiceStub(self.channel))
            call: Stream = stub.Exchange(metadata=self._metadata)
            self.was_open = True
            await self._converse(call)
        except (grpc.RpcError, TimeoutError, ConnectionError, asyncio.InvalidStateError) as error:
            why = str(error.code()) if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
            log.warning("a stream to a peer has ended", peer_idc=self.record.idc, peer=self.record.gateway, why=why)
        finally:
            self._give_up()
            await self.channel.close()

    async def _connect(self) -> None:
        async with asyncio.timeout(self._settings.connect_timeout.total_seconds()):
            state = self.channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state in {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}:
                    raise ConnectionError
                await self.channel.wait_for_state_change(state)
                state = self.channel.get_state()

    async def _converse(self, call: Stream) -> None:
        gauge = metrics.PEER_STREAMS.labels(self.record.idc)
        gauge.inc()
        tasks = {asyncio.create_task(self._read(call)), asyncio.create_task(self._write(call))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            gauge.dec()
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, call: Stream) -> None:
        in_flight = self._in_flight
        while True:
            response = await call.read()
            if not isinstance(response, ExchangeResponse):
                return
            for result in response.results:
                unit, index = in_flight.pop(result.id, (None, 0))
                if unit is not None:
                    unit.take(index, result)

    async def _write(self, call: Stream) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queues:
                request = self._pack()
                if request.operations:
                    metrics.MESSAGE_OPERATIONS.observe(len(request.operations))
                    await call.write(request)

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _pack(self) -> ExchangeRequest:
        """One message: whole units of one purpose, as many as fit. Purposes take turns."""
        purpose = next(iter(self._queues))
        queue = self._queues.pop(purpose)
        request = ExchangeRequest(purpose=purpose)
        latest = size = 0.0
        while queue:
            unit = queue[0]
            if request.operations and (
                len(request.operations) + len(unit.operations) > MAX_BATCH_ROWS
                or size >= self._settings.max_message_bytes
            ):
                break
            queue.popleft()
            self._queued -= len(unit.operations)
            if unit.future.done():
                continue
            size += self._add(request, unit)
            latest = max(latest, unit.deadline)
        if queue:
            self._queues[purpose] = queue
        remaining = latest - asyncio.get_running_loop().time()
        request.timeout_ms = max(1, int(remaining * 1000))
        return request

    def _add(self, request: ExchangeRequest, unit: Unit) -> int:
        """Adds a unit's operations; returns their size in bytes, where it matters."""
        unit.was_sent = True
        size = 0
        for index, (operation, traceparent) in enumerate(zip(unit.operations, unit.traceparents, strict=True)):
            number = self._next_id
            self._next_id = number + 1
            self._in_flight[number] = (unit, index)
            message = request.operations.add(
                id=number, dataset=operation.dataset.name, region_code=operation.region_code
            )
            set_key(message.key, operation.key)
            if traceparent:
                message.traceparent = traceparent
            size += _fill_action(message, operation)
        return size

    # ---- endings ----------------------------------------------------------------------------------------------------

    def _expire(self, now: float) -> bool:
        late = [number for number, (unit, _) in self._in_flight.items() if unit.deadline <= now]
        for unit in (unit for queue in self._queues.values() for unit in queue):
            if unit.deadline <= now:
                unit.fail(_too_late(self.record.idc))
        for number in late:
            unit, _ = self._in_flight.pop(number)
            unit.fail(_too_late(self.record.idc))
        if not self._is_listed():
            # Its lease has run out: it may be paused or cut off, and would answer nothing until the deadlines pass.
            self._task.cancel()
            return False
        return self.is_usable and bool(self._in_flight or self._queued)

    def _give_up(self) -> None:
        self.is_usable = False
        units: dict[int, Unit] = {id(unit): unit for unit, _ in self._in_flight.values()}
        units.update((id(unit), unit) for queue in self._queues.values() for unit in queue)
        self._in_flight.clear()
        self._queues.clear()
        self._queued = 0
        self._on_broken(self, list(units.values()))


def _fill_action(message: Operation, operation: RowOperation) -> int:
    if operation.action is Action.GET:
        if operation.columns is None:
            message.get.SetInParent()
        else:
            message.get.columns.extend(sorted(operation.columns))
        return 0
    if operation.action is Action.PUT:
        message.put.SetInParent()
        fill_cells(message.put.columns, operation.values or {}, operation.dataset)
    else:
        message.delete.SetInParent()
    if operation.if_version is not None:
        message.if_version = operation.if_version
    if operation.request_id:
        message.request_id = operation.request_id
    return message.ByteSize()


def _too_late(idc: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"the deadline passed before {idc} answered")
