"""The two gRPC servers of a gateway: one for clients, one for peers, with health and reflection on both.

gRPC's own limits that drop calls at random are set out of reach; the bounds are in `gateway.admission`. A port that is
taken is an error here, not a second listener on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from regiongate.v1 import (
    job_service_pb2,
    job_service_pb2_grpc,
    policy_service_pb2,
    policy_service_pb2_grpc,
    routing_service_pb2,
    routing_service_pb2_grpc,
    row_service_pb2,
    row_service_pb2_grpc,
    shard_service_pb2,
    shard_service_pb2_grpc,
)

if TYPE_CHECKING:
    from gateway.row_service import ExchangeService
    from gateway.settings import Address

MAX_MESSAGE_BYTES: Final = 16 << 20
"""A batch of the largest rows is cut by this, an ordinary one of 1,000 rows is far below."""

PEER_MESSAGE_BYTES: Final = 2 * MAX_MESSAGE_BYTES
"""What a client may send was bounded where it entered; repacked for a peer it may be larger."""

_ROW_SERVICE: Final[str] = row_service_pb2.DESCRIPTOR.services_by_name["RowService"].full_name

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class CannotListen(OSError):
    """An address cannot be bound."""


class Listener:
    """One server on one address."""

    def __init__(self, max_message_bytes: int) -> None:
        self.server = grpc.aio.server(
            options=[
                *_OPTIONS,
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
            ]
        )
        self._health = HealthServicer()
        self._names: list[str] = []

    def serve_rows(self, service: row_service_pb2_grpc.RowServiceServicer) -> None:
        """Adds RowService."""
        row_service_pb2_grpc.add_RowServiceServicer_to_server(service, self.server)
        self._names.append(_ROW_SERVICE)

    def serve_exchange(self, service: ExchangeService) -> None:
        """Adds the one method of RowService that peers use."""
        # A coroutine that reads and writes by its context is what grpc.aio takes; the stub knows iterators only.
        handler = grpc.stream_stream_rpc_method_handler(
            cast("Any", service.Exchange),
            request_deserializer=row_service_pb2.ExchangeRequest.FromString,
            response_serializer=row_service_pb2.ExchangeResponse.SerializeToString,
        )
        handlers = grpc.method_handlers_generic_handler(_ROW_SERVICE, {"Exchange": handler})
        self.server.add_generic_rpc_handlers((handlers,))
        self._names.append(_ROW_SERVICE)

    def serve_routes(self, service: routing_service_pb2_grpc.RoutingServiceServicer) -> None:
        """Adds RoutingService."""
        routing_service_pb2_grpc.add_RoutingServiceServicer_to_server(service, self.server)
        self._names.append(routing_service_pb2.DESCRIPTOR.services_by_name["RoutingService"].full_name)

    def serve_policies(self, service: policy_service_pb2_grpc.PolicyServiceServicer) -> None:
        """Adds PolicyService."""
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(service, self.server)
        self._names.append(policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name)

    def serve_shards(self, service: shard_service_pb2_grpc.ShardServiceServicer) -> None:
        """Adds ShardService."""
        shard_service_pb2_grpc.add_ShardServiceServicer_to_server(service, self.server)
        self._names.append(shard_service_pb2.DESCRIPTOR.services_by_name["ShardService"].full_name)

    def serve_jobs(self, service: job_service_pb2_grpc.JobServiceServicer) -> None:
        """Adds JobService."""
        job_service_pb2_grpc.add_JobServiceServicer_to_server(service, self.server)
        self._names.append(job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name)

    def bind(self, address: Address, credentials: grpc.ServerCredentials | None) -> Address:
        """Binds the address and returns it with the port that it got; raises `CannotListen`."""
        try:
            if credentials is None:
                port = self.server.add_insecure_port(str(address))
            else:
                port = self.server.add_secure_port(str(address), credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise CannotListen(f"cannot listen on {address}: the port is taken or the address is not this machine's")
        return address._replace(port=port)

    async def start(self) -> None:
        """Starts answering; health says NOT_SERVING until `set_serving`."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        names = (*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self.server)
        await self.set_serving(is_serving=False)
        await self.server.start()

    async def set_serving(self, *, is_serving: bool) -> None:
        """What health says of the server and of each service."""
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Takes no new call, and ends what is still going on after `grace` seconds."""
        await self.server.stop(grace)
