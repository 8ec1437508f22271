"""The routes as a gateway's table has them, and what open rollouts do to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from regiongate.cli.calls import gateway_channel
from regiongate.cli.failures import CommandFailed

if TYPE_CHECKING:
    import grpc.aio

    from regiongate.cli.entry import Entry
    from regiongate.v1 import policy_service_pb2, routing_service_pb2
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub
    from regiongate.v1.routing_service_pb2_grpc import RoutingServiceAsyncStub

_AT_REST = frozenset({"done", "called off"})


async def read_routes(
    entry: Entry,
) -> tuple[routing_service_pb2.WatchRoutesResponse, dict[tuple[str, int], policy_service_pb2.ShardMove]]:
    """All routes, and the moves that are ordered and have not come to their end."""
    async with gateway_channel(entry) as channel:
        return await _snapshot(channel, entry), await _moves(channel, entry)


async def read_drained(entry: Entry) -> tuple[str, ...]:
    """IDCs that are to be emptied."""
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    async with gateway_channel(entry) as channel:
        answer = await _policies(channel).GetPolicy(pb.GetPolicyRequest(), timeout=entry.timeout)
        return tuple(answer.drained_idcs)


async def _snapshot(channel: grpc.aio.Channel, entry: Entry) -> routing_service_pb2.WatchRoutesResponse:
    from regiongate.v1 import routing_service_pb2 as pb  # noqa: PLC0415 (grpc takes 100 ms to load; --help needs none)
    from regiongate.v1.routing_service_pb2_grpc import RoutingServiceStub  # noqa: PLC0415

    stub = cast("RoutingServiceAsyncStub", RoutingServiceStub(channel))
    call = stub.WatchRoutes(pb.WatchRoutesRequest(), timeout=entry.timeout)
    async for answer in call:
        call.cancel()
        return answer
    raise CommandFailed("NO_ROUTES", "the gateway has not told its routes")


async def _moves(channel: grpc.aio.Channel, entry: Entry) -> dict[tuple[str, int], policy_service_pb2.ShardMove]:
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    stub = _policies(channel)
    listed = (await stub.ListRollouts(pb.ListRolloutsRequest(page_size=1000), timeout=entry.timeout)).rollouts
    found: dict[tuple[str, int], pb.ShardMove] = {}
    for rollout in listed:
        if rollout.end_time.seconds or not rollout.shards_total:
            continue
        answer = await stub.GetRollout(pb.GetRolloutRequest(rollout=rollout.rollout), timeout=entry.timeout)
        for move in answer.rollout.moves:
            if move.phase not in _AT_REST:
                found.setdefault((move.region_code, move.shard), move)
    return found


def _policies(channel: grpc.aio.Channel) -> PolicyServiceAsyncStub:
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub  # noqa: PLC0415

    return cast("PolicyServiceAsyncStub", PolicyServiceStub(channel))
