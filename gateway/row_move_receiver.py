"""What a gateway does with a row's way at the request of another IDC's: it judges for itself, then does one step.

The fence of the shard that the request names is the authority on whether this IDC is that home (law L2): a step that it
refuses is answered with `StaleEpoch`, and the asker looks for the owner anew. Settling and cancelling are not judged by
the law again: they end what was lawful when it began, and the row lies here already, or stays where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from gateway.decisions import DecisionMessages
from gateway.judge import Asking
from gateway.move_checks import check_residency
from gateway.requests import check_region, dataset_of, table_of
from gateway.row_move_law import RowMove, judge_move
from gateway.values import check_request_id, decode_key, decode_values, set_time
from policy.errors import InvalidInput, RowExists, RowMoving, SchemaDiffers, StaleEpoch, UnknownColumn
from policy.sharding import shard_of
from regiongate.v1 import shard_service_pb2 as pb
from rowstore.model import FenceMiss, ReadKey, Written
from rowstore.row_moves import Arrived, ArrivingRow, Awaited, Occupied

if TYPE_CHECKING:
    from gateway.hold import FollowerLike
    from policy.model import Dataset
    from rowstore.row_moves import RowMoves

_T = TypeVar("_T")

ARRIVED: Final = "arrived"
SETTLED: Final = "settled"
UNKNOWN: Final = "unknown"


class RowReceiver:
    """The steps that this IDC does for others, and for itself."""

    def __init__(self, idc: str, view: FollowerLike, moves: RowMoves) -> None:
        self._idc = idc
        self._view = view
        self._moves = moves
        self._decisions = DecisionMessages()

    async def receive(self, request: pb.ReceiveRowRequest, from_idc: str) -> pb.ReceiveRowResponse:
        """Does the step of the request, for the IDC that is known to ask.

        Raises:
            InvalidInput, AccessDenied, TableTooOld: the request is refused.
            StaleEpoch: this IDC's database does not serve the shard at the epoch.
            RowExists, RowMoving, SchemaDiffers: the row cannot arrive here; nothing was done.
            DatabaseUnavailable: nobody knows whether it was done.
        """
        dataset = dataset_of(self._view, request.dataset)
        shard = request.shard
        place = ReadKey(check_region(shard.region_code), shard.shard, shard.epoch, decode_key(dataset, request.key))
        match request.step:
            case pb.ROW_MOVE_STEP_ARRIVE:
                return await self._arrive(dataset, place, request, from_idc)
            case pb.ROW_MOVE_STEP_SETTLE:
                return await self._settle(dataset, place, request)
            case pb.ROW_MOVE_STEP_CANCEL:
                _passed(await self._moves.cancel(dataset, place, request.move_id))
                return pb.ReceiveRowResponse(state=UNKNOWN)
            case pb.ROW_MOVE_STEP_FIND:
                return await self._find(dataset, place, request)
            case pb.ROW_MOVE_STEP_ASK:
                return await self._ask(dataset, place, request)
            case _:
                raise InvalidInput("the step of a row's move is not known", field_name="step")

    async def _arrive(
        self, dataset: Dataset, place: ReadKey, request: pb.ReceiveRowRequest, from_idc: str
    ) -> pb.ReceiveRowResponse:
        policy = table_of(self._view).policy
        if shard_of(place.key, policy.residency(place.region_code).shards) != place.shard:
            raise InvalidInput("the key does not belong to the shard", field_name="shard")
        if not request.asking_idcs or not request.move_id:
            raise InvalidInput("an arrival says which move it is of, and who asks", field_name="asking_idcs")
        check_residency(policy, place.region_code, self._idc)
        move = RowMove(
            dataset,
            check_region(request.from_region_code),
            place.key,
            place.region_code,
            None,
            check_request_id(request.request_id),
        )
        asking = Asking(self._idc, tuple(request.asking_idcs), request.purpose, has_hopped=True)
        decisions = judge_move(policy, move, asking, from_idc, self._idc, is_fresh=self._view.is_fresh)
        try:
            values = decode_values(dataset, request.columns)
        except UnknownColumn as error:
            raise SchemaDiffers(f"{self._idc} does not know a column of the row yet: {error.message}") from None
        row = ArrivingRow(request.move_id, move.region_code, move.request_id, values)
        outcome = await self._moves.arrive(dataset, place, row)
        if isinstance(outcome, Occupied):
            raise RowExists(f"a row of this key lives under {place.region_code} already")
        if isinstance(outcome, Awaited):
            raise RowMoving(f"another row of this key is on its way to {place.region_code}")
        if isinstance(outcome, Arrived):
            return pb.ReceiveRowResponse(state=ARRIVED, decision=self._decisions.message(decisions.come, self._idc))
        return _settled(_passed(outcome))

    async def _settle(self, dataset: Dataset, place: ReadKey, request: pb.ReceiveRowRequest) -> pb.ReceiveRowResponse:
        written = _passed(await self._moves.settle(dataset, place, request.move_id))
        if written is not None:
            return _settled(written)
        # Somebody else has settled it: its request tells as what.
        return await self._find(dataset, place, request)

    async def _find(self, dataset: Dataset, place: ReadKey, request: pb.ReceiveRowRequest) -> pb.ReceiveRowResponse:
        found = _passed(await self._moves.find(dataset, place, check_request_id(request.request_id)))
        if found.first_result is not None:
            return _settled(found.first_result)
        is_expected = found.arriving is not None and found.arriving[1] == request.request_id
        return pb.ReceiveRowResponse(state=ARRIVED if is_expected else UNKNOWN)

    async def _ask(self, dataset: Dataset, place: ReadKey, request: pb.ReceiveRowRequest) -> pb.ReceiveRowResponse:
        found = _passed(await self._moves.look(dataset, place))
        departure = found.departure
        stands = departure is not None and departure.plan.move_id == request.move_id
        return pb.ReceiveRowResponse(state=str(departure.state) if departure is not None and stands else UNKNOWN)


def _passed(outcome: _T | FenceMiss) -> _T:
    """The outcome of a step that the fence has let pass; raises `StaleEpoch`."""
    if isinstance(outcome, FenceMiss):
        raise StaleEpoch("the IDC that was asked does not serve the row's shard at the epoch asked for")
    return outcome


def _settled(written: Written) -> pb.ReceiveRowResponse:
    response = pb.ReceiveRowResponse(state=SETTLED)
    response.receipt.version = written.version
    set_time(response.receipt.update_time, written.update_time)
    return response
