"""ShardService: what gateways and the controller ask of this IDC, on the peer listener only.

A fence is opened only for a shard that this gateway's own table assigns to its IDC at that very epoch, and whose
residency rule permits the IDC: a caller that is mistaken, or late, opens nothing (laws L1, L2).
"""

# The ladder's decorator makes parameters positional, which is how grpc passes them.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from gateway.identity import check_controller, check_ingress
from gateway.ladder import unary
from gateway.operations import CallContext
from gateway.requests import check_region, dataset_of, table_of
from gateway.scan import ScanQuery
from gateway.values import check_columns, decode_key
from policy.errors import AccessDenied, InvalidInput, InvalidValue, LimitReached, NotOwnedHere
from regiongate.v1 import shard_service_pb2, shard_service_pb2_grpc
from rowstore.filter import parse_filter
from rowstore.model import ShardEpoch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.decisions import DecisionMessages
    from gateway.hold import FollowerLike
    from gateway.ladder import Call, Ladder
    from gateway.scan import Scanner
    from policy.table import RoutingTable
    from rowstore.fences import Fences, FenceState

MAX_SHARDS: Final = 10_000
MAX_SCAN_ROWS: Final = 1000
_WAIT_FOR_TABLE: Final = 5.0
"""Seconds that an assignment may take to arrive here after the controller has made it."""


class ShardService(shard_service_pb2_grpc.ShardServiceServicer):
    """Serves fences and scans of one IDC."""

    def __init__(
        self,
        ladder: Ladder,
        idc: str,
        view: FollowerLike,
        *,
        fences: Fences,
        scanner: Scanner,
        decisions: DecisionMessages,
    ) -> None:
        self.ladder = ladder
        self._idc = idc
        self._view = view
        self._fences = fences
        self._scanner = scanner
        self._decisions = decisions

    @unary
    async def OpenShards(  # noqa: N802 (gRPC's name)
        self, request: shard_service_pb2.OpenShardsRequest, call: Call
    ) -> shard_service_pb2.OpenShardsResponse:
        """Opens fences of shards that are assigned here for the first time."""
        check_controller(call.context.ingress_idc)
        shards = _shards(request.shards)
        await self._check_assigned(shards, call.context.deadline)
        states = await self._fences.open(shards)
        return shard_service_pb2.OpenShardsResponse(fences=map(_fence_message, states))

    @unary
    async def GetFences(  # noqa: N802 (gRPC's name)
        self, request: shard_service_pb2.GetFencesRequest, call: Call
    ) -> shard_service_pb2.GetFencesResponse:
        """The fences as the database has them."""
        check_controller(call.context.ingress_idc)
        states = await self._fences.get(_shards(request.shards))
        return shard_service_pb2.GetFencesResponse(fences=map(_fence_message, states))

    @unary
    async def ScanRows(  # noqa: N802 (gRPC's name)
        self, request: shard_service_pb2.ScanRowsRequest, call: Call
    ) -> shard_service_pb2.ScanRowsResponse:
        """A page of the rows of some shards of one RegionCode."""
        check_ingress(call.context.ingress_idc)
        shards = _shards(request.shards)
        query = self._query(request, shards)
        asked = call.context
        context = CallContext(
            asked.deadline, request.purpose or asked.purpose, asked.origin_idc, asked.ingress_idc, asked.traceparent
        )
        page = await self._scanner.scan(query, shards, context)
        return shard_service_pb2.ScanRowsResponse(
            rows=page.rows, more=page.more, decision=self._decisions.message(page.decision, self._idc)
        )

    def _query(self, request: shard_service_pb2.ScanRowsRequest, shards: Sequence[ShardEpoch]) -> ScanQuery:
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
        jurisdiction = table.policy.idcs.get(self._idc)
        for region_code in {shard.region_code for shard in shards}:
            residency = table.policy.residency(region_code)
            if jurisdiction not in residency.jurisdictions:
                raise AccessDenied(
                    f"residency rule {residency.rule} does not permit {region_code} in {self._idc}",
                    rule=residency.rule,
                    policy_revision=table.policy.revision,
                )

    def _is_assigned(self, table: RoutingTable, shard: ShardEpoch) -> bool:
        route = table.route(shard.region_code, shard.shard)
        return route is not None and (route.idc, route.epoch) == (self._idc, shard.epoch)


def _shards(messages: Sequence[shard_service_pb2.ShardRef]) -> list[ShardEpoch]:
    if len(messages) > MAX_SHARDS:
        raise LimitReached(f"more than {MAX_SHARDS} shards in one call", limit="shards")
    return [ShardEpoch(check_region(message.region_code), message.shard, message.epoch) for message in messages]


def _fence_message(state: FenceState) -> shard_service_pb2.ShardFence:
    return shard_service_pb2.ShardFence(
        region_code=state.region_code,
        shard=state.shard,
        epoch=state.epoch,
        mode=str(state.mode),
        last_seq=state.last_seq,
    )
