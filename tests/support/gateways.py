"""Whole gateways in the test's own process, over a real etcd and a real PostgreSQL, and a controller beside them."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gateway.main import Gateway
from gateway.settings import GatewaySettings
from policy.controller.loop import Controller
from policy.controller.peers import PeerCalls
from policy.follower import Follower
from policy.model import Phase
from policy.records import Keys
from regiongate.v1 import policy_service_pb2
from regiongate.v1.job_service_pb2_grpc import JobServiceStub
from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub
from regiongate.v1.routing_service_pb2_grpc import RoutingServiceStub
from regiongate.v1.row_service_pb2_grpc import RowServiceStub
from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub
from rowstore.database import Database
from runtime.etcd import EtcdClient, EtcdSettings
from runtime.telemetry.tracing import Tracing
from tests.support.postgres import create_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from policy.table import RoutingTable
    from runtime.embedded.postgres import EmbeddedPostgres

POLICY = """\
version: 1
idcs:
  sha: {jurisdiction: CN}
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
  sin: {jurisdiction: SG}
groups:
  EU: [DE, FR]
residency:
  - {name: china, regions: [CN], jurisdictions: [CN], idcs: {sha: 100}, shards: 2, transit: forbid}
  - {name: europe, regions: [EU], jurisdictions: [EU], idcs: {fra: 50, ams: 50}, shards: 4}
  - {name: asia, regions: [SG], jurisdictions: [SG], idcs: {sin: 100}, shards: 2}
access:
  - {name: eu-support, regions: [EU], from: [SG], operations: [read], purposes: [support], withhold: [personal]}
  - {name: eu-entry, regions: [EU], from: [SG], operations: [write], purposes: [entry]}
  - {name: cn-audit, regions: [CN], from: [EU], operations: [read], purposes: [audit]}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
  counters:
    key: int64
    columns:
      n: {type: int64}
"""
EUROPE = """\
version: 1
idcs:
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
residency:
  - {name: europe, regions: [DE], jurisdictions: [EU], idcs: {fra: 50, ams: 50}, shards: 4}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
"""
"""A policy of two IDCs under one law."""

IDCS = ("sha", "fra", "ams", "sin")
READY_SECONDS = 20


@dataclass
class Running:
    """One gateway, and a client of it."""

    idc: str
    gateway: Gateway
    settings: GatewaySettings
    stop: asyncio.Event
    task: asyncio.Task[None]
    channel: grpc.aio.Channel
    peer_channel: grpc.aio.Channel

    @property
    def rows(self) -> Any:
        """A client of RowService."""
        return RowServiceStub(self.channel)

    @property
    def routes(self) -> Any:
        """A client of RoutingService."""
        return RoutingServiceStub(self.channel)

    @property
    def policies(self) -> Any:
        """A client of PolicyService."""
        return PolicyServiceStub(self.channel)

    @property
    def jobs(self) -> Any:
        """A client of JobService."""
        return JobServiceStub(self.channel)

    @property
    def peer_jobs(self) -> Any:
        """JobService as a peer sees it."""
        return JobServiceStub(self.peer_channel)

    @property
    def peer_rows(self) -> Any:
        """RowService as a peer sees it."""
        return RowServiceStub(self.peer_channel)

    @property
    def shards(self) -> Any:
        """ShardService as a peer sees it."""
        return ShardServiceStub(self.peer_channel)

    @property
    def table(self) -> RoutingTable | None:
        """What it decides by."""
        return self.gateway.view.table

    async def end(self) -> None:
        """Stops it as SIGTERM does."""
        self.stop.set()
        await asyncio.wait_for(self.task, 30)


@dataclass
class Site:
    """Gateways of one cluster."""

    etcd_endpoint: str
    cluster: str
    databases: dict[str, str] = field(default_factory=dict)
    gateways: dict[str, Running] = field(default_factory=dict)

    def __getitem__(self, idc: str) -> Running:
        return self.gateways[idc]

    async def apply(self, document: str = POLICY, idc: str = "fra") -> None:
        """Applies a policy and waits until every gateway serves all of it."""
        await self[idc].policies.ApplyPolicy(
            policy_service_pb2.ApplyPolicyRequest(document=document, author="test"), timeout=READY_SECONDS
        )
        for running in self.gateways.values():
            await until_serving(running)


async def until(condition: Any, seconds: float = READY_SECONDS) -> None:
    """Looks until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event: it is the state of several parts)
            await asyncio.sleep(0.01)


async def until_serving(running: Running) -> None:
    """Waits until its table has every shard in service, and its schema has caught up."""

    def is_serving() -> bool:
        table = running.table
        if table is None or not running.gateway.readiness().is_ready:
            return False
        return all(
            route is not None and route.phase is Phase.SERVING
            for code in table.policy.regions
            for route in table.routes_of(code)
        )

    await until(is_serving)


async def refusal(call) -> tuple[str, str, dict[str, str]]:
    """Status, reason and metadata that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "regiongate.dev"
    return caught.value.code().name, info.reason, dict(info.metadata)


@asynccontextmanager
async def running_gateway(
    site: Site, idc: str, client_credentials: grpc.ChannelCredentials | None = None, **options: object
) -> AsyncIterator[Running]:
    """One gateway on free ports, until the block ends."""
    plain = {"listen": "127.0.0.1:0", "peer_listen": "127.0.0.1:0", "lease_ttl": 3, "drain_timeout": 3}
    reached = {"etcd_endpoints": site.etcd_endpoint, "database_url": site.databases[idc]}
    settings = GatewaySettings(idc=idc, cluster=site.cluster, **cast("Any", plain | reached | options))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(EtcdClient(settings.etcd_settings()))
        database = await stack.enter_async_context(Database.open(site.databases[idc], size=4))
        tracing = Tracing("gateway", idc, settings.trace_sample_ratio, settings.trace_directory)
        stack.callback(tracing.shutdown)
        gateway = Gateway(settings, client, database, tracing)
        stop = asyncio.Event()
        task = asyncio.create_task(gateway.serve(stop))
        channel = await stack.enter_async_context(_channel(str(gateway.address), client_credentials))
        peer_channel = await stack.enter_async_context(grpc.aio.insecure_channel(str(gateway.peer_address)))
        running = Running(idc, gateway, settings, stop, task, channel, peer_channel)
        site.gateways[idc] = running
        try:
            yield running
        finally:
            site.gateways.pop(idc, None)
            await running.end()


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address)
    return grpc.aio.secure_channel(address, credentials)


@asynccontextmanager
async def running_site(
    etcd_endpoint: str,
    server: EmbeddedPostgres,
    *idcs: str,
    policy: str = POLICY,
    options: Callable[[str], Mapping[str, object]] = lambda _: {},
    client_credentials: grpc.ChannelCredentials | None = None,
    controller_credentials: grpc.ChannelCredentials | None = None,
    has_controller: bool = True,
) -> AsyncIterator[Site]:
    """Gateways of the IDCs, a controller, and a policy in force (unless it is empty).

    Without a controller one runs only until all is served: then the test is the controller.
    """
    site = Site(etcd_endpoint, f"test-{uuid.uuid4().hex[:8]}")
    for idc in IDCS:
        site.databases[idc] = await create_database(server)
    async with AsyncExitStack() as stack:
        for idc in idcs or IDCS:
            gateway = (
                await stack.enter_async_context(running_gateway(site, idc, client_credentials, **options(idc)))
            ).gateway
            # One after the other: migrations of several databases do not share a process.
            await until(lambda gateway=gateway: gateway.readiness().checks["schema"] == "ok")
        async with AsyncExitStack() as controllers:
            await controllers.enter_async_context(running_controller(site, controller_credentials))
            for running in site.gateways.values():
                await until(lambda running=running: running.gateway.is_open)
            if policy:
                await site.apply(policy, next(iter(site.gateways)))
            if has_controller:
                yield site
        if not has_controller:
            yield site


@asynccontextmanager
async def running_controller(
    site: Site, credentials: grpc.ChannelCredentials | None = None
) -> AsyncIterator[Controller]:
    """A controller of the cluster."""
    keys = Keys(site.cluster)
    stop = asyncio.Event()
    async with EtcdClient(EtcdSettings((site.etcd_endpoint,))) as client:
        follower, peers = Follower(client, keys), PeerCalls(credentials, 5.0)
        controller = Controller(
            client, keys, follower, peers, "test", Tracing("controller", "", 0.0, None), timedelta(seconds=3)
        )
        await follower.start()
        task = asyncio.create_task(controller.run(stop))
        try:
            yield controller
        finally:
            stop.set()
            await asyncio.wait({task}, timeout=10)
            await follower.stop()
            await peers.close()
