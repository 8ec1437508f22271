"""The recorder of border crossings, while the way to etcd breaks: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from gateway.crossings import ENTRY_COUNTERS, Asked, Crossings, CrossingsRecorder
from policy.audit.chain import AuditChain
from policy.audit.entry import ChainCheck
from policy.model import Operation
from runtime.etcd import EtcdClient
from tests.support import routing
from tests.support.cluster import settings
from tests.support.tcp_proxy import TcpProxy

ABROAD = routing.policy().decide("customers", "DE", ("sin",), Operation.READ, "support")


class Gateway:
    """What counts and records in a gateway."""

    def __init__(self, client, keys):
        self.crossings = Crossings()
        self.recorder = CrossingsRecorder(
            self.crossings, AuditChain(client, keys), gateway="sin-1", idc="sin", every=timedelta(seconds=60)
        )

    def cross(self, number, purpose="support"):
        for _ in range(number):
            self.crossings.count(ABROAD, Asked("DE", Operation.READ, purpose), None)


@pytest.fixture
async def proxy(etcd):
    async with TcpProxy(etcd.client_port) as proxy:
        yield proxy


@pytest.fixture
async def gateway(proxy, cluster):
    async with EtcdClient(settings(proxy.address)) as client:
        yield Gateway(client, cluster.keys)


async def contents(cluster):
    check = ChainCheck()
    page = await cluster.store.audit.read(1, 1000)
    for entry in page.entries:
        check.take(entry)
        assert entry.kind == "crossings"
    check.end(page.head)
    return [entry.content for entry in page.entries]


def total(content):
    return sum(row["count"] for row in content["counts"])


async def test_one_entry_has_what_one_interval_has_counted(cluster, gateway):
    gateway.cross(3)
    gateway.cross(2, "other")
    assert await gateway.recorder.flush()
    gateway.cross(1)
    assert await gateway.recorder.flush()
    first, second = await contents(cluster)
    assert (first["gateway"], first["idc"], first["to"]) == ("sin-1", "sin", second["from"])
    assert [(row["purpose"], row["count"]) for row in first["counts"]] == [("other", 2), ("support", 3)]
    assert first["counts"][0] == {
        "rule": "eu-support",
        "policy_revision": 1,
        "asking_jurisdiction": "SG",
        "region_code": "DE",
        "operation": "read",
        "purpose": "other",
        "outcome": "permitted",
        "withheld": True,
        "count": 2,
    }


async def test_nothing_is_recorded_when_nothing_has_crossed(cluster, gateway):
    assert await gateway.recorder.flush()
    await gateway.recorder.stop()
    assert await contents(cluster) == []


async def test_counts_are_kept_while_etcd_does_not_answer(cluster, gateway, proxy):
    gateway.cross(3)
    await proxy.cut()
    assert not await gateway.recorder.flush()
    gateway.cross(4)
    assert not await gateway.recorder.flush()
    gateway.cross(5)
    await proxy.heal()
    assert await gateway.recorder.flush()
    assert list(map(total, await contents(cluster))) == [3, 9]


async def test_counts_whose_answer_is_lost_are_recorded_once(cluster, gateway, proxy):
    gateway.cross(1)
    assert await gateway.recorder.flush()
    for round_ in range(2, 5):
        gateway.cross(round_)
        proxy.swallow_answers()
        flushing = asyncio.create_task(gateway.recorder.flush())
        await asyncio.wait({flushing}, timeout=0.3 * (round_ - 2))
        await proxy.cut_connections()
        proxy.resume()
        async with asyncio.timeout(20):
            is_recorded = await flushing
            while not is_recorded:
                is_recorded = await gateway.recorder.flush()
    assert sum(map(total, await contents(cluster))) == 1 + 2 + 3 + 4


async def test_a_flush_that_was_cut_short_is_finished_by_the_last_one(cluster, gateway, proxy):
    gateway.cross(1)
    assert await gateway.recorder.flush()
    gateway.cross(2)
    proxy.pause()
    flushing = asyncio.create_task(gateway.recorder.flush())
    await asyncio.wait({flushing}, timeout=0.1)
    flushing.cancel()
    proxy.resume()
    gateway.cross(4)
    await gateway.recorder.stop()
    assert list(map(total, await contents(cluster))) == [1, 2, 4]


async def test_very_many_counters_make_several_entries(cluster, gateway):
    for number in range(ENTRY_COUNTERS + 1):
        gateway.cross(1, f"purpose-{number}")
    assert await gateway.recorder.flush()
    assert [len(content["counts"]) for content in await contents(cluster)] == [ENTRY_COUNTERS, 1]
