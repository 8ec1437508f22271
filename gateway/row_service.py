"""RowService: requests to operations, outcomes to answers. What is done with a row is the engine's business.

Clients get all of it on the client listener; peers get `Exchange` only, on theirs.
"""

# The ladder's decorator makes parameters positional, which is how grpc passes them; `Exchange` reads and writes by its
# context, which the generated base class does not know.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.batch_answers import error_of, get_answer, write_answer
from gateway.call_metrics import STREAMS_OPEN
from gateway.exchange import ExchangeShared, ExchangeStream, to_receipt
from gateway.identity import check_ingress
from gateway.ladder import unary
from gateway.requests import (
    check_batch,
    check_no_key_twice,
    dataset_of,
    delete_operation,
    get_operation,
    put_operation,
    write_operation,
)
from gateway.status import abort
from gateway.values import check_columns, encode_row
from policy.errors import RegiongateError
from regiongate.v1 import row_service_pb2, row_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc.aio

    from gateway.identity import Caller
    from gateway.ladder import Call, Ladder
    from gateway.listing import Lister
    from gateway.operations import OperationOutcome, RowOperation
    from gateway.row_move import RowMover

    Context = grpc.aio.ServicerContext[Any, Any]


class ExchangeService:
    """`Exchange` alone: what a peer may use."""

    def __init__(self, ladder: Ladder, shared: ExchangeShared) -> None:
        self.ladder = ladder
        self._shared = shared
        self._open = STREAMS_OPEN.labels("Exchange")

    async def Exchange(self, request_iterator: object, context: Context) -> None:  # noqa: ARG002, N802 (gRPC's)
        """A kept stream of operations."""
        admission = self.ladder.admission
        is_counted = False
        try:
            caller = self.ladder.side.identify(context)
            self._check(caller)
            admission.admit_stream()
            is_counted = True
            self._open.inc()
            await ExchangeStream(self._shared, caller, context).run()
        except Exception as error:  # noqa: BLE001 (this is where a stream's error gets its status)
            await abort(context, error, where="Exchange")
        finally:
            if is_counted:
                self._open.dec()
                admission.release_stream()

    def _check(self, caller: Caller) -> None:
        check_ingress(caller.ingress_idc)


class RowService(ExchangeService, row_service_pb2_grpc.RowServiceServicer):
    """Everything that clients do with rows."""

    def __init__(
        self,
        ladder: Ladder,
        shared: ExchangeShared,
        lister: Lister,
        mover: RowMover,
    ) -> None:
        super().__init__(ladder, shared)
        self._engine = shared.engine
        self._view = shared.view
        self._decisions = shared.decisions
        self._lister = lister
        self._mover = mover

    def _check(self, caller: Caller) -> None:
        """Clients have nothing more to say."""

    @unary
    async def GetRow(  # noqa: N802 (gRPC's name)
        self, request: row_service_pb2.GetRowRequest, call: Call
    ) -> row_service_pb2.GetRowResponse:
        """The row, or NOT_FOUND."""
        dataset = dataset_of(self._view, request.dataset)
        columns = check_columns(dataset, request.columns) if request.columns else None
        operation = get_operation(dataset, request.region_code, request.key, columns, call.traceparent)
        outcome = await self._engine.execute_one(operation, call.context)
        if outcome.row is None:
            raise error_of(outcome)
        return row_service_pb2.GetRowResponse(
            row=encode_row(outcome.row, dataset),
            decision=self._decisions.message(outcome.decision, outcome.owner_idc),
        )

    @unary
    async def PutRow(  # noqa: N802 (gRPC's name)
        self, request: row_service_pb2.PutRowRequest, call: Call
    ) -> row_service_pb2.PutRowResponse:
        """Writes the whole row."""
        dataset = dataset_of(self._view, request.dataset)
        operation = put_operation(dataset, request, request.columns, request.request_id, call.traceparent)
        outcome = await self._engine.execute_one(operation, call.context)
        if outcome.receipt is None:
            raise error_of(outcome)
        return row_service_pb2.PutRowResponse(
            receipt=to_receipt(outcome.receipt),
            decision=self._decisions.message(outcome.decision, outcome.owner_idc),
        )

    @unary
    async def DeleteRow(  # noqa: N802 (gRPC's name)
        self, request: row_service_pb2.DeleteRowRequest, call: Call
    ) -> row_service_pb2.DeleteRowResponse:
        """Deletes the row."""
        dataset = dataset_of(self._view, request.dataset)
        operation = delete_operation(dataset, request, request.request_id, call.traceparent)
        outcome = await self._engine.execute_one(operation, call.context)
        if outcome.receipt is None:
            raise error_of(outcome)
        return row_service_pb2.DeleteRowResponse(
            receipt=to_receipt(outcome.receipt),
            decision=self._decisions.message(outcome.decision, outcome.owner_idc),
        )

    @unary
    async def MoveRow(  # noqa: N802 (gRPC's name)
        self, request: row_service_pb2.MoveRowRequest, call: Call
    ) -> row_service_pb2.MoveRowResponse:
        """Gives the row another RegionCode."""
        return await self._mover.move(request, call.context)

    @unary
    async def BatchGetRows(  # noqa: N802 (gRPC's name)
        self, request: row_service_pb2.BatchGetRowsRequest, call: Call
    ) -> row_service_pb2.BatchGetRowsResponse:
        """One result for each key."""
        check_batch(request.keys, "keys")
        dataset = dataset_of(self._view, request.dataset)
        columns = check_columns(dataset, request.columns)
        self.ladder.admit_more(call, len(request.keys))
        operations: list[RowOperation] = []
        refused: dict[int, RegiongateError] = {}
        for number, entry in enumerate(request.keys):
            try:
                operations.append(get_operation(dataset, entry.region_code, entry.key, columns, call.traceparent))
            except RegiongateError as error:
                refused[number] = error
        outcomes = await self._execute(operations, refused, call)
        return get_answer(outcomes, dataset, self._decisions, call.traceparent)

    @unary
    async def BatchWriteRows(  # noqa: N802 (gRPC's name)
        self, request: row_service_pb2.BatchWriteRowsRequest, call: Call
    ) -> row_service_pb2.BatchWriteRowsResponse:
        """One result for each write."""
        check_batch(request.writes, "writes")
        dataset = dataset_of(self._view, request.dataset)
        self.ladder.admit_more(call, len(request.writes))
        request_id, traceparent = request.request_id, call.traceparent
        operations: list[RowOperation] = []
        refused: dict[int, RegiongateError] = {}
        for number, write in enumerate(request.writes):
            try:
                operations.append(write_operation(dataset, write, request_id, traceparent))
            except RegiongateError as error:
                refused[number] = error
        check_no_key_twice(operations)
        return write_answer(await self._execute(operations, refused, call), self._decisions, traceparent)

    @unary
    async def ListRows(  # noqa: N802 (gRPC's name)
        self, request: row_service_pb2.ListRowsRequest, call: Call
    ) -> row_service_pb2.ListRowsResponse:
        """A page of the rows of one RegionCode."""
        return await self._lister.list_rows(request, call.context)

    async def _execute(
        self, operations: list[RowOperation], refused: dict[int, RegiongateError], call: Call
    ) -> Sequence[OperationOutcome | RegiongateError]:
        """The outcomes in the order of the request; what was refused, by its place there, fails alone."""
        outcomes = await self._engine.execute(operations, call.context) if operations else []
        if not refused:
            return outcomes
        performed = iter(outcomes)
        places = range(len(operations) + len(refused))
        return [refused[place] if place in refused else next(performed) for place in places]
