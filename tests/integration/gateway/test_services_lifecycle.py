"""A gateway process: starts before its database, drains at SIGTERM, and says what is wrong when it cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from regiongate.v1 import policy_service_pb2 as policy_pb
from regiongate.v1 import routing_service_pb2 as routing_pb
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import types_pb2
from regiongate.v1.routing_service_pb2_grpc import RoutingServiceStub
from regiongate.v1.row_service_pb2_grpc import RowServiceStub
from runtime.supervisor.probe import fetch, read_health
from tests.support.gateways import Site, refusal, running_controller, running_gateway, running_site, until
from tests.support.ports import free_ports
from tests.support.postgres import create_database
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
GET = pb.GetRowRequest(dataset="customers", region_code="DE", key=types_pb2.Key(string_key="k"))


class Process:
    """A gateway as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, metrics: str) -> None:
        self.process = process
        self.address = address
        self.metrics = metrics

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while not (await read_health(self.metrics)).is_ready:
                assert self.process.returncode is None, await self.said()
                await asyncio.sleep(0.02)

    async def said(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@asynccontextmanager
async def gateway_process(etcd_endpoint: str, database: str, **options: str) -> AsyncIterator[Process]:
    client, peer, metrics = free_ports(3)
    settings = {
        "idc": "fra",
        "cluster": f"test-{client}",
        "etcd_endpoints": etcd_endpoint,
        "database_url": database,
        "listen": f"127.0.0.1:{client}",
        "peer_listen": f"127.0.0.1:{peer}",
        "metrics_port": str(metrics),
        "lease_ttl": "3",
        "drain_timeout": "3",
    } | options
    environment = os.environ | {f"REGIONGATE_{name.upper()}": value for name, value in settings.items()}
    command = [str(Path(sys.executable).with_name("regiongate")), "gateway"]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    try:
        yield Process(process, f"127.0.0.1:{client}", f"http://127.0.0.1:{metrics}")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)).status


async def test_a_process_starts_serves_and_drains_at_sigterm(etcd, database_url: str):
    async with gateway_process(etcd.endpoint, database_url) as running:
        await running.ready()
        async with grpc.aio.insecure_channel(running.address) as channel:
            assert await health(channel) == SERVING
            assert await health(channel, "regiongate.v1.RowService") == SERVING
            assert (await refusal(RowServiceStub(channel).GetRow(GET, timeout=5)))[:2] == (
                "FAILED_PRECONDITION",
                "NO_POLICY",
            )
            watch = RoutingServiceStub(channel).WatchRoutes(routing_pb.WatchRoutesRequest())
            assert (await watch.read()).snapshot
            stream = RowServiceStub(channel).Exchange()
            await stream.write(pb.ExchangeRequest(operations=[pb.Operation(id=1)]))
            assert (await stream.read()).results[0].error.reason
            status, metrics = await fetch(f"{running.metrics}/metrics")
            assert status == 200
            assert b"regiongate_gateway_calls_total" in metrics
            running.process.send_signal(signal.SIGTERM)
            for ended in (watch.read(), stream.read()):
                assert (await refusal(ended))[:2] == ("UNAVAILABLE", "UNAVAILABLE")
        assert await asyncio.wait_for(running.process.wait(), 10) == 0
        lines = [json.loads(line) for line in (await running.said()).splitlines()]
        assert [line["event"] for line in lines if line["level"] in {"error", "critical"}] == []
        assert "drained" in {line["event"] for line in lines}


async def test_reflection_lists_what_a_client_may_call(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server, "fra", policy="") as site:
        stub = reflection_pb2_grpc.ServerReflectionStub(site["fra"].channel)
        stream = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await stream.read()
        names = {service.name for service in answer.list_services_response.service}
    services = ("RowService", "RoutingService", "PolicyService", "JobService")
    assert {f"regiongate.v1.{name}" for name in services} < names
    assert "grpc.health.v1.Health" in names
    assert "regiongate.v1.ShardService" not in names


async def test_a_port_that_is_taken_is_said_in_one_line(etcd, database_url: str):
    async with gateway_process(etcd.endpoint, database_url) as first:
        await first.ready()
        async with gateway_process(etcd.endpoint, database_url, listen=first.address) as second:
            assert await asyncio.wait_for(second.process.wait(), 20) == 1
            assert f"cannot listen on {first.address}" in await second.said()


async def test_a_gateway_starts_while_its_database_is_down_and_heals(etcd, postgres_server):
    """Law and other IDCs' rows do not wait for a database; its own rows are refused as retryable."""
    url = await create_database(postgres_server)
    port = urlsplit(url).port
    async with TcpProxy(port) as proxy:
        site = Site(etcd.endpoint, f"test-{free_ports(1)[0]}")
        site.databases["fra"] = url.replace(f":{port}/", f":{proxy.port}/")
        await proxy.cut()
        async with running_gateway(site, "fra") as fra, running_controller(site):
            await until(lambda: fra.gateway.is_open)
            assert not fra.gateway.readiness().is_ready
            assert await health(fra.channel) == SERVING
            await proxy.heal()
            await site.apply(ONE_IDC)
            await proxy.cut()
            code, reason, _ = await refusal(fra.rows.GetRow(GET, timeout=5))
            assert code == "UNAVAILABLE"
            assert reason == "DATABASE_UNAVAILABLE"
            await until(lambda: fra.gateway.readiness().checks["database"] != "ok")
            await proxy.heal()
            await until(lambda: fra.gateway.readiness().is_ready)
            assert (await refusal(fra.rows.GetRow(GET, timeout=5)))[1] == "ROW_NOT_FOUND"


async def test_no_call_is_taken_before_the_gateway_has_registered(etcd, postgres_server):
    """Law L6: without a snapshot of the law there is no service."""
    async with TcpProxy(int(etcd.endpoint.rpartition(":")[2])) as proxy:
        site = Site(f"127.0.0.1:{proxy.port}", f"test-{free_ports(1)[0]}")
        site.databases["fra"] = await create_database(postgres_server)
        await proxy.cut()
        async with running_gateway(site, "fra") as fra:
            assert (await refusal(fra.rows.GetRow(GET, timeout=5)))[:2] == ("UNAVAILABLE", "UNAVAILABLE")
            assert await health(fra.channel) == NOT_SERVING
            await proxy.heal()
            await until(lambda: fra.gateway.is_open)
            assert await health(fra.channel) == SERVING


async def test_calls_beyond_the_limit_are_refused_at_once(etcd, postgres_server):
    options = {"max_operations": 5}
    async with running_site(etcd.endpoint, postgres_server, "fra", policy=ONE_IDC, options=lambda _: options) as site:
        keys = [types_pb2.RowKey(region_code="DE", key=types_pb2.Key(string_key=str(number))) for number in range(6)]
        request = pb.BatchGetRowsRequest(dataset="customers", keys=keys)
        assert (await refusal(site["fra"].rows.BatchGetRows(request, timeout=5)))[:2] == (
            "RESOURCE_EXHAUSTED",
            "LIMIT_REACHED",
        )
        del request.keys[5:]
        assert len((await site["fra"].rows.BatchGetRows(request, timeout=5)).results) == 5


async def test_without_the_policy_store_own_traffic_goes_on_and_border_crossings_are_refused(etcd, postgres_server):
    """Law L6; when the store answers again, all heals."""
    support = [("x-regiongate-purpose", "support")]
    route = routing_pb.ResolveRouteRequest(
        dataset="customers", region_code="DE", key=GET.key, operation=types_pb2.OPERATION_KIND_READ, purpose="support"
    )
    async with TcpProxy(int(etcd.endpoint.rpartition(":")[2])) as proxy:
        address = f"127.0.0.1:{proxy.port}"
        async with running_site(address, postgres_server, "fra", "sin", policy=TWO_LAWS) as site:
            fra, sin = site["fra"], site["sin"]
            put = pb.PutRowRequest(dataset="customers", region_code="DE", key=GET.key)
            put.columns["spend"].int64_value = 1
            await fra.rows.PutRow(put, timeout=5)
            assert (await sin.rows.GetRow(GET, timeout=5, metadata=support)).row.version
            await proxy.cut()
            await until(lambda: not any(running.gateway.view.is_fresh for running in (fra, sin)))
            assert (await fra.rows.GetRow(GET, timeout=5)).row.version
            refused = ("UNAVAILABLE", "TABLE_TOO_OLD")
            listing = pb.ListRowsRequest(dataset="customers", region_code="DE")
            assert (await refusal(sin.rows.GetRow(GET, timeout=5, metadata=support)))[:2] == refused
            assert (await refusal(sin.rows.ListRows(listing, timeout=5, metadata=support)))[:2] == refused
            assert (await refusal(sin.routes.ResolveRoute(route, timeout=5)))[:2] == refused
            straight = [*support, ("x-regiongate-origin", "sin")]
            assert (await refusal(fra.rows.GetRow(GET, timeout=5, metadata=straight)))[:2] == refused
            apply = policy_pb.ApplyPolicyRequest(document=TWO_LAWS, author="test")
            assert (await refusal(fra.policies.ApplyPolicy(apply, timeout=10)))[:2] == (
                "UNAVAILABLE",
                "STORE_UNAVAILABLE",
            )
            assert fra.gateway.readiness().is_ready, "it can still do its own IDC's work"
            await proxy.heal()
            await until(lambda: all(running.gateway.view.is_fresh for running in (fra, sin)))
            assert (await sin.rows.GetRow(GET, timeout=5, metadata=support)).row.version


TWO_LAWS = """\
version: 1
idcs:
  fra: {jurisdiction: EU}
  sin: {jurisdiction: SG}
residency:
  - {name: europe, regions: [DE], jurisdictions: [EU], idcs: {fra: 100}, shards: 2}
access:
  - {name: eu-support, regions: [DE], from: [SG], operations: [read], purposes: [support]}
datasets:
  customers:
    key: string
    columns:
      spend: {type: int64}
"""
ONE_IDC = """\
version: 1
idcs:
  fra: {jurisdiction: EU}
residency:
  - {name: europe, regions: [DE], jurisdictions: [EU], idcs: {fra: 100}, shards: 2}
datasets:
  customers:
    key: string
    columns:
      spend: {type: int64}
"""


@pytest.fixture(autouse=True)
def _no_colour(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
