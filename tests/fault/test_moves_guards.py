"""What two guards of moves are there for: the same scenario with each and without it (`tests.support.unguarded`)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from policy.errors import StaleAttempt
from policy.model import Phase
from regiongate.v1 import routing_service_pb2
from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1.routing_service_pb2_grpc import RoutingServiceStub
from tests.support.extra_gateway import extra_gateway
from tests.support.law_stack import calling, until
from tests.support.move_stack import PATIENCE
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from policy.records import ShardRecord
    from tests.support.move_stack import MoveStack


async def test_law_l2_rests_on_the_attempt_in_the_fence(moves: MoveStack) -> None:
    """A gateway of the source has lost touch with etcd; then the steps of a move that was called off come to it."""
    source, target = await moves.ends()
    shard = 0
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        etcd = await enter(TcpProxy(int(moves.stack.etcd_endpoints[0].rpartition(":")[2])))
        names = ("nothing", "attempts")
        gateways = {it: await enter(extra_gateway(moves, source, without=(it,), etcd=etcd.address)) for it in names}
        controller = await enter(moves.controller(f"before CloseShard DE/{shard}"))
        rollout = await moves.move_shard(shard, target)
        await controller.held()
        late = (await moves.shard_records())["DE", shard]
        for gateway in gateways.values():
            await until(partial(_knows, gateway.address, shard, late), PATIENCE, "it does not hear of the move")
        etcd.pause()
        await moves.cancel(rollout)
        controller.go()
        await moves.rest()
        with pytest.raises(StaleAttempt):
            await _close(gateways["nothing"].peer_address, shard, late)
        assert (await moves.fence_rows(source))["DE", shard].mode == "serving"
        await _close(gateways["attempts"].peer_address, shard, late)
        assert (await moves.fence_rows(source))["DE", shard].mode == "closed", "nobody serves it any more"
        assert (await moves.phases())[shard] == Phase.SERVING
        async with moves.database(source) as connection:
            await connection.execute(
                "UPDATE shard_fences SET mode = 'serving' WHERE region_code = 'DE' AND shard = $1", shard
            )
        etcd.resume()


@pytest.mark.parametrize("without", ["nothing", "switch"])
async def test_a_cancelled_move_stays_where_it_is_only_because_the_switch_looks_at_its_rollout(
    moves: MoveStack, without: str
) -> None:
    """The controller is frozen when all is decided, and does not hear of the cancellation before it switches."""
    source, target = await moves.ends()
    shard = 1
    point = f"freeze before Switch DE/{shard}"
    async with moves.controller(point, without=(without,), lease_ttl=60) as controller:
        rollout = await moves.move_shard(shard, target)
        await controller.held()
        answer = await moves.cancel(rollout)
        assert not answer.going_on
        controller.go()
        await moves.rest()
        assert (await moves.rollouts())[rollout].state == "cancelled"
        owner = (await moves.shard_records())["DE", shard].owner
        assert owner == (source if without == "nothing" else target)


async def _knows(address: str, shard: int, record: ShardRecord) -> bool:
    """Whether a gateway's own table has the shard in the record's phase."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = RoutingServiceStub(channel)
        stream = stub.WatchRoutes(routing_service_pb2.WatchRoutesRequest(), timeout=10)
        answer = await stream.read()
        stream.cancel()
        routes = {(it.region_code, it.shard): it.phase for it in answer.routes}
        return routes["DE", shard] == record.phase


async def _close(address: str, shard: int, record: ShardRecord) -> None:
    """What the controller would have asked of the source in that attempt."""
    move = pb.MoveRef(
        region_code="DE",
        shard=shard,
        epoch=record.epoch,
        attempt=record.attempt,
        source_idc=record.owner,
        target_idc=record.target,
    )
    async with calling(address) as peer:
        await peer.call(peer.shards.DrainShard, pb.DrainShardRequest(move=move))
        await peer.call(peer.shards.CloseShard, pb.CloseShardRequest(move=move))
