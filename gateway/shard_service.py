"""ShardService: what gateways and the controller ask of this IDC, on the peer listener only.

A fence is opened only for a shard that this gateway's own table assigns to its IDC at that very epoch, and whose
residency rule permits the IDC: a caller that is mistaken, or late, opens nothing (laws L1, L2). The steps of moves are
in `gateway.shard_moves`, `gateway.shard_export` and `gateway.shard_import`.
"""

# The ladder's decorator makes parameters positional, which is how grpc passes them.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.identity import check_controller, check_ingress
from gateway.ladder import unary
from gateway.move_checks import Step, check_residency
from gateway.operations import CallContext
from gateway.requests import check_region, dataset_of, table_of
from gateway.scan import ScanQuery
from gateway.streams import stream
from gateway.values import check_columns, decode_key
from policy.errors import InvalidInput, InvalidValue, LimitReached, NotOwnedHere
from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1 import shard_service_pb2_grpc
from rowstore.filter import parse_filter
from rowstore.model import ShardEpoch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.decisions import DecisionMessages
    from gateway.hold import FollowerLike
    from gateway.ladder import Call, Ladder
    from gateway.row_move import RowMover
    from gateway.row_move_receiver import RowReceiver
    from gateway.scan import Scanner
    from gateway.shard_export import ShardExports
    from gateway.shard_import import ShardImports
    from gateway.shard_moves import ShardMoves
    from gateway.streams import StreamCall
    from policy.table import RoutingTable
    from rowstore.fences import Fences, FenceState
    from rowstore.moving import Mover

MAX_SHARDS: Final = 10_000
MAX_SCAN_ROWS: Final = 1000
_WAIT_FOR_TABLE: Final = 5.0
"""Seconds that an assignment may take to arrive here after the controller has made it."""


class Moves(NamedTuple):
    """What moves shards in one IDC."""

    steps: ShardMoves
    exports: ShardExports
    imports: ShardImports
    mover: Mover


class ShardService(shard_service_pb2_grpc.ShardServiceServicer):
    """Serves fences, scans and moves of one IDC."""

    def __init__(
        self,
        ladder: Ladder,
        idc: str,
        view: FollowerLike,
        *,
        fences: Fences,
        scanner: Scanner,
        decisions: DecisionMessages,
        moves: Moves,
        row_mover: RowMover,
        row_receiver: RowReceiver,
    ) -> None:
        self.ladder = ladder
        self._idc = idc
        self._view = view
        self._fences = fences
        self._scanner = scanner
        self._decisions = decisions
        self._moves = moves
        self._row_mover = row_mover
        self._row_receiver = row_receiver

    @unary
    async def OpenShards(  # noqa: N802 (gRPC's name)
        self, request: pb.OpenShardsRequest, call: Call
    ) -> pb.OpenShardsResponse:
        """Opens fences of shards that are assigned here for the first time."""
        check_controller(call.context.ingress_idc)
        shards = _shards(request.shards)
        await self._check_assigned(shards, call.context.deadline)
        states = await self._fences.open(shards)
        return pb.OpenShardsResponse(fences=map(_fence_message, states))

    @unary
    async def GetFences(  # noqa: N802 (gRPC's name)
        self, request: pb.GetFencesRequest, call: Call
    ) -> pb.GetFencesResponse:
        """The fences as the database has them."""
        check_controller(call.context.ingress_idc)
        states = await self._fences.get(_shards(request.shards))
        return pb.GetFencesResponse(fences=map(_fence_message, states))

    @unary
    async def ScanRows(  # noqa: N802 (gRPC's name)
        self, request: pb.ScanRowsRequest, call: Call
    ) -> pb.ScanRowsResponse:
        """A page of the rows of some shards of one RegionCode."""
        check_ingress(call.context.ingress_idc)
        shards = _shards(request.shards)
        query = self._query(request, shards)
        asked = call.context
        context = CallContext(
            asked.deadline, request.purpose or asked.purpose, asked.origin_idc, asked.ingress_idc, asked.traceparent
        )
        page = await self._scanner.scan(query, shards, context)
        return pb.ScanRowsResponse(
            rows=page.rows, more=page.more, decision=self._decisions.message(page.decision, self._idc)
        )

    # ---- moves ------------------------------------------------------------------------------------------------------

    @unary
    async def BeginExport(self, request: pb.BeginExportRequest, call: Call) -> pb.BeginExportResponse:  # noqa: N802 (gRPC's name)
        """Source: lets an attempt begin."""
        return pb.BeginExportResponse(fence=await self._step(Step.BEGIN_EXPORT, request.move, call))

    @unary
    async def DrainShard(self, request: pb.DrainShardRequest, call: Call) -> pb.DrainShardResponse:  # noqa: N802 (gRPC's name)
        """Source: holds writes."""
        return pb.DrainShardResponse(fence=await self._step(Step.DRAIN, request.move, call))

    @unary
    async def CloseShard(self, request: pb.CloseShardRequest, call: Call) -> pb.CloseShardResponse:  # noqa: N802 (gRPC's name)
        """Source: serves nothing any more."""
        return pb.CloseShardResponse(fence=await self._step(Step.CLOSE, request.move, call))

    @unary
    async def ReopenShard(self, request: pb.ReopenShardRequest, call: Call) -> pb.ReopenShardResponse:  # noqa: N802 (gRPC's name)
        """Source: serves again."""
        return pb.ReopenShardResponse(fence=await self._step(Step.REOPEN, request.move, call))

    @unary
    async def OpenShard(self, request: pb.OpenShardRequest, call: Call) -> pb.OpenShardResponse:  # noqa: N802 (gRPC's name)
        """Target: serves from now on."""
        return pb.OpenShardResponse(fence=await self._step(Step.OPEN, request.move, call))

    @unary
    async def PurgeShard(self, request: pb.PurgeShardRequest, call: Call) -> pb.PurgeShardResponse:  # noqa: N802 (gRPC's name)
        """Either: deletes what lies here of a shard that is another's."""
        check_controller(call.context.ingress_idc)
        return await self._moves.steps.purge(request, call.context.deadline)

    @unary
    async def MeasureShards(self, request: pb.MeasureShardsRequest, call: Call) -> pb.MeasureShardsResponse:  # noqa: ARG002, N802 (gRPC's name; any peer may ask)
        """How much there is of some shards."""
        sizes = await self._moves.mover.measure(_shards(request.shards))
        return pb.MeasureShardsResponse(
            sizes=[
                pb.ShardSize(region_code=size.region_code, shard=size.shard, rows=size.rows, bytes=size.bytes)
                for size in sizes
            ]
        )

    @stream
    async def ImportShard(self, request: pb.ImportShardRequest, call: StreamCall[pb.ImportShardResponse]) -> None:  # noqa: N802 (gRPC's name)
        """Target: pulls the shard, and tells how far it is."""
        check_controller(call.context.ingress_idc)
        await self._moves.imports.run(request, call)

    @stream
    async def ExportShard(self, request: pb.ExportShardRequest, call: StreamCall[pb.ExportShardResponse]) -> None:  # noqa: N802 (gRPC's name)
        """Source: gives the target's gateway the rows."""
        await self._moves.exports.export(request, call)

    async def _step(self, step: Step, move: pb.MoveRef, call: Call) -> pb.ShardFence:
        check_controller(call.context.ingress_idc)
        return _fence_message(await self._moves.steps.take(step, move, call.context.deadline))

    # ---- parts of the others ----------------------------------------------------------------------------------------

    @unary
    async def ForwardMoveRow(  # noqa: N802 (gRPC's name)
        self, request: pb.ForwardMoveRowRequest, call: Call
    ) -> pb.ForwardMoveRowResponse:
        """Gives a row of this IDC another RegionCode."""
        check_ingress(call.context.ingress_idc)
        context = replace(call.context, purpose=request.purpose or call.context.purpose)
        return pb.ForwardMoveRowResponse(response=await self._row_mover.move(request.request, context))

    @unary
    async def ReceiveRow(  # noqa: N802 (gRPC's name)
        self, request: pb.ReceiveRowRequest, call: Call
    ) -> pb.ReceiveRowResponse:
        """One step of a row's way to its new home."""
        check_ingress(call.context.ingress_idc)
        return await self._row_receiver.receive(request, call.context.ingress_idc)

    def _query(self, request: pb.ScanRowsRequest, shards: Sequence[ShardEpoch]) -> ScanQuery:
        dataset = dataset_of(self._view, request.dataset)
        if len({shard.region_code for shard in shards}) != 1:
            raise InvalidInput("a scan is over shards of one RegionCode", field_name="shards")
        if not 1 <= request.limit <= MAX_SCAN_ROWS:
            raise InvalidValue(f"limit is 1 to {MAX_SCAN_ROWS}", field_name="limit")
        return ScanQuery(
            dataset,
            shards[0].region_code,
            parse_filter(request.filter, dataset) if request.filter.strip() else None,
            check_columns(dataset, request.columns),
            request.limit,
            decode_key(dataset, request.after) if request.HasField("after") else None,
        )

    async def _check_assigned(self, shards: Sequence[ShardEpoch], deadline: float) -> None:
        """Waits for a table that assigns all of them to this IDC; raises `NotOwnedHere` or `AccessDenied`."""
        now = asyncio.get_running_loop().time()
        # Half of the caller's time at most, so that the refusal still reaches it.
        until = now + min((deadline - now) / 2, _WAIT_FOR_TABLE)
        while True:
            table = table_of(self._view)
            stray = next((shard for shard in shards if not self._is_assigned(table, shard)), None)
            if stray is None:
                break
            if not await self._view.wait_beyond(table.store_revision, until):
                owner = table.route(stray.region_code, stray.shard)
                raise NotOwnedHere(
                    f"shard {stray.shard} of {stray.region_code} is not assigned to {self._idc} at epoch {stray.epoch}",
                    owner_idc=owner.idc if owner is not None else "",
                )
        for region_code in {shard.region_code for shard in shards}:
            check_residency(table.policy, region_code, self._idc)

    def _is_assigned(self, table: RoutingTable, shard: ShardEpoch) -> bool:
        route = table.route(shard.region_code, shard.shard)
        return route is not None and (route.idc, route.epoch) == (self._idc, shard.epoch)


def _shards(messages: Sequence[pb.ShardRef]) -> list[ShardEpoch]:
    if len(messages) > MAX_SHARDS:
        raise LimitReached(f"more than {MAX_SHARDS} shards in one call", limit="shards")
    return [ShardEpoch(check_region(message.region_code), message.shard, message.epoch) for message in messages]


def _fence_message(state: FenceState) -> pb.ShardFence:
    return pb.ShardFence(
        region_code=state.region_code,
        shard=state.shard,
        epoch=state.epoch,
        mode=str(state.mode),
        last_seq=state.last_seq,
    )
