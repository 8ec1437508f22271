"""One `Exchange` stream: messages of operations come in, results go out as they are ready.

An operation that must wait, for another IDC or for a shard on the move, delays no other one's result. Results that
become ready while a message is being written go out together with the next one. The number of messages in work on a
stream is bounded, and one counts until its results are written: a sender that does not read its answers is
not read from either. When the gateway stops, what is in work is finished and the stream ends UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from gateway.limits import MAX_BATCH_ROWS
from gateway.operations import CallContext
from gateway.requests import exchange_operation
from gateway.spans import start_message
from gateway.status import to_error_message
from gateway.values import encode_row, set_time
from policy.errors import InvalidInput, LimitReached, RegiongateError, Unavailable
from regiongate.v1 import row_service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc.aio

    from gateway.admission import Admission
    from gateway.decisions import DecisionMessages
    from gateway.engine import Engine
    from gateway.hold import FollowerLike
    from gateway.identity import Caller
    from gateway.operations import OperationOutcome, RowOperation
    from rowstore.model import Written
    from runtime.telemetry.tracing import Tracing

    Context = grpc.aio.ServicerContext[Any, Any]

MAX_MESSAGE_BYTES: Final = 3 << 20
"""Clients take 4 MiB by default; a message above this is split."""


class ExchangeShared:
    """What all streams of a gateway share."""

    def __init__(
        self,
        engine: Engine,
        view: FollowerLike,
        admission: Admission,
        decisions: DecisionMessages,
        max_messages: int,
        *,
        tracing: Tracing,
    ) -> None:
        self.engine = engine
        self.view = view
        self.admission = admission
        self.decisions = decisions
        self.max_messages = max_messages
        self.tracing = tracing


class ExchangeStream:
    """One open stream."""

    def __init__(self, shared: ExchangeShared, caller: Caller, context: Context) -> None:
        self._shared = shared
        self._caller = caller
        self._grpc = context
        self._in_work = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: list[row_service_pb2.OperationResult] = []
        self._done = 0
        """Messages whose last results are in `_ready`."""
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._has_ended = False

    async def run(self) -> None:
        """Serves until the sender has ended the stream and has all results, or the gateway stops.

        Raises:
            Unavailable: the gateway stops.
        """
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        draining = asyncio.create_task(self._shared.admission.draining.wait())
        try:
            await asyncio.wait((reader, writer, draining), return_when=asyncio.FIRST_COMPLETED)
            reader.cancel()
            await asyncio.wait((reader,))
            self._finish()
            await writer
            if not reader.cancelled():
                reader.result()
        finally:
            for task in (reader, writer, draining, *self._tasks):
                task.cancel()
        if self._shared.admission.draining.is_set():
            raise Unavailable("this gateway is stopping")

    def _finish(self) -> None:
        """Nothing more is read; the writer ends with the last result."""
        self._has_ended = True
        self._wake.set()

    async def _read(self) -> None:
        while True:
            await self._room.wait()
            request = await self._grpc.read()
            if not isinstance(request, row_service_pb2.ExchangeRequest):
                return
            self._start(request)

    def _start(self, request: row_service_pb2.ExchangeRequest) -> None:
        self._in_work += 1
        if self._in_work >= self._shared.max_messages:
            self._room.clear()
        task = asyncio.create_task(self._perform(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _perform(self, request: row_service_pb2.ExchangeRequest) -> None:
        """Answers one message, part by part."""
        try:
            operations = self._parse(request)
            if operations:
                await self._execute(request, operations)
        finally:
            self._done += 1
            self._wake.set()

    async def _execute(self, request: row_service_pb2.ExchangeRequest, operations: dict[int, RowOperation]) -> None:
        shared, caller = self._shared, self._caller
        admission = shared.admission
        numbers, listed = list(operations), list(operations.values())
        waiting = set(numbers)
        try:
            admission.admit(len(listed))
        except RegiongateError as error:
            self._answer(_failed(numbers, error))
            return
        span = start_message(shared.tracing, shared.engine.idc, caller, listed)
        context = CallContext(
            admission.deadline_in(request.timeout_ms),
            request.purpose or caller.purpose,
            caller.origin_idc,
            caller.ingress_idc,
            caller.traceparent,
        )
        try:
            async for part in shared.engine.execute_in_parts(listed, context):
                self._answer([self._result(numbers[index], listed[index], outcome) for index, outcome in part])
                waiting.difference_update(numbers[index] for index, _ in part)
        except Exception as error:  # noqa: BLE001 (told to those who asked; the stream and its other calls go on)
            self._answer(_failed(waiting, error))
        finally:
            admission.release(len(listed))
            if span is not None:
                span.end()

    def _parse(self, request: row_service_pb2.ExchangeRequest) -> dict[int, RowOperation]:
        """The operations by id; what is refused has its result at once."""
        if len(request.operations) > MAX_BATCH_ROWS:
            error = LimitReached(f"a message has more than {MAX_BATCH_ROWS} operations", limit="batch_rows")
            self._answer(_failed((operation.id for operation in request.operations), error))
            return {}
        view = self._shared.view
        operations: dict[int, RowOperation] = {}
        for message in request.operations:
            try:
                if message.id in operations:
                    raise InvalidInput("an operation's id is unique among those in flight", field_name="id")
                operations[message.id] = exchange_operation(view, message)
            except RegiongateError as error:
                self._answer(_failed((message.id,), error))
        return operations

    def _result(
        self, number: int, operation: RowOperation, outcome: OperationOutcome
    ) -> row_service_pb2.OperationResult:
        decision = self._shared.decisions.message(outcome.decision, outcome.owner_idc)
        if outcome.row is not None:
            row = encode_row(outcome.row, operation.dataset)
            return row_service_pb2.OperationResult(id=number, row=row, decision=decision)
        if outcome.receipt is not None:
            receipt = to_receipt(outcome.receipt)
            return row_service_pb2.OperationResult(id=number, receipt=receipt, decision=decision)
        error = outcome.error or RegiongateError("an operation without an outcome")
        message = to_error_message(error, where="Exchange", traceparent=operation.traceparent)
        return row_service_pb2.OperationResult(id=number, error=message, decision=decision)

    def _answer(self, results: list[row_service_pb2.OperationResult]) -> None:
        self._ready += results
        self._wake.set()

    async def _write(self) -> None:
        while not (self._has_ended and not self._in_work):
            await self._wake.wait()
            self._wake.clear()
            ready, self._ready = self._ready, []
            done, self._done = self._done, 0
            if ready:
                await self._send(row_service_pb2.ExchangeResponse(results=ready))
            self._in_work -= done
            if self._in_work < self._shared.max_messages:
                self._room.set()

    async def _send(self, response: row_service_pb2.ExchangeResponse) -> None:
        if len(response.results) > 1 and response.ByteSize() > MAX_MESSAGE_BYTES:
            half = len(response.results) // 2
            await self._send(row_service_pb2.ExchangeResponse(results=response.results[:half]))
            await self._send(row_service_pb2.ExchangeResponse(results=response.results[half:]))
            return
        await self._grpc.write(response)


def _failed(numbers: Iterable[int], error: BaseException) -> list[row_service_pb2.OperationResult]:
    message = to_error_message(error, where="Exchange")
    return [row_service_pb2.OperationResult(id=number, error=message) for number in numbers]


def to_receipt(written: Written) -> row_service_pb2.WriteReceipt:
    """What a write left behind, as it travels."""
    receipt = row_service_pb2.WriteReceipt(version=written.version)
    set_time(receipt.update_time, written.update_time)
    return receipt
