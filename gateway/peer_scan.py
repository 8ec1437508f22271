"""Pages of rows from another IDC: one `ScanRows` call to one of its gateways."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from gateway.peer_calls import hop_metadata, told_as_ours
from gateway.scan import ScanPage
from gateway.values import set_key
from policy.model import AccessDecision
from regiongate.v1 import shard_service_pb2, types_pb2
from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.operations import CallContext
    from gateway.peers import Peers
    from gateway.scan import ScanQuery
    from rowstore.model import ShardEpoch


class PeerScanner:
    """Asks other IDCs for their part of a listing."""

    def __init__(self, idc: str, peers: Peers) -> None:
        self._idc = idc
        self._peers = peers
        self._now = asyncio.get_running_loop().time

    async def scan(
        self, idc: str, query: ScanQuery, shards: Sequence[ShardEpoch], context: CallContext, deadline: float
    ) -> ScanPage:
        """Reads one page of the shards at their owner; raises what the owner does, and `PeerUnreachable`."""
        request = shard_service_pb2.ScanRowsRequest(
            dataset=query.dataset.name,
            shards=[
                shard_service_pb2.ShardRef(region_code=shard.region_code, shard=shard.shard, epoch=shard.epoch)
                for shard in shards
            ],
            filter=query.filter_text,
            limit=query.limit,
            columns=sorted(query.columns or ()),
            purpose=context.purpose,
        )
        if query.after is not None:
            set_key(request.after, query.after)
        response = await self._call(idc, request, context, deadline)
        return ScanPage(response.rows, response.more, _decision(response.decision))

    async def _call(
        self, idc: str, request: shard_service_pb2.ScanRowsRequest, context: CallContext, deadline: float
    ) -> shard_service_pb2.ScanRowsResponse:
        # The generated type of the stub is that of the blocking one.
        stub = cast("Any", ShardServiceStub(self._peers.channel(idc)))
        metadata, timeout = hop_metadata(self._idc, context), max(0.001, deadline - self._now())
        with told_as_ours(idc):
            return await stub.ScanRows(request, metadata=metadata, timeout=timeout)


def _decision(message: types_pb2.Decision) -> AccessDecision:
    return AccessDecision(
        True,
        message.rule,
        "",
        message.policy_revision,
        message.asking_jurisdiction,
        crosses_border=True,
        withheld=frozenset(message.withheld),
    )
