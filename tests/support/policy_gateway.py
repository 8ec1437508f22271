"""The policy and routing services of one gateway over a cluster in etcd, without rows, for tests of commands."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio

from gateway.admission import Admission
from gateway.identity import ClientSide
from gateway.ladder import Ladder
from gateway.measures import Measured
from gateway.policy_service import PolicyService
from gateway.routing_service import RoutingService
from gateway.settings import GatewaySettings
from policy.view import PolicyView
from regiongate.v1.policy_service_pb2_grpc import add_PolicyServiceServicer_to_server
from regiongate.v1.routing_service_pb2_grpc import add_RoutingServiceServicer_to_server
from runtime.telemetry.tracing import Tracing
from tests.support.cluster import member

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from policy.plan import ShardMove
    from tests.support.cluster import Cluster


class Sizes:
    """Every shard has 500 rows; sha cannot be asked."""

    async def measure(self, moves: Sequence[ShardMove]) -> Measured:
        """Rows and bytes of each move."""
        known = [move for move in moves if move.from_idc != "sha"]
        unreachable = ("sha",) if len(known) < len(moves) else ()
        return Measured({move.key: (500, 64_000) for move in known}, unreachable)


@asynccontextmanager
async def policy_gateway(cluster: Cluster, endpoint: str) -> AsyncIterator[tuple[str, grpc.aio.Server, Admission]]:
    """Its address; the server, so that a test can end it; and its count of calls in flight."""
    admission = Admission(GatewaySettings(idc="fra", database_url="postgresql://nowhere/none"))
    admission.open()
    ladder = Ladder(admission, ClientSide(), Tracing("gateway", "fra", 0, None), "fra")
    server = grpc.aio.server()
    async with member(endpoint, cluster.keys, register=False) as it:
        view = PolicyView(it.follower, it.presence)
        add_PolicyServiceServicer_to_server(PolicyService(ladder, cluster.store, Sizes()), server)
        add_RoutingServiceServicer_to_server(RoutingService(ladder, "fra", view), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}", server, admission
        finally:
            await server.stop(0)
