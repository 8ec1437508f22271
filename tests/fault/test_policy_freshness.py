"""Law L6: after `apply` has called a revision effective, no gateway judges a border crossing by an older one."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from policy.effect import wait_effective
from policy.errors import PolicyNotEffective, StoreUnavailable
from policy.follower import Follower
from policy.presence import Presence
from policy.records import CurrentPolicy, Keys, PolicyRevision
from runtime.etcd import EtcdClient
from tests.support.cluster import WITHOUT_SUPPORT, Cluster, Member, deadline, eventually, member, settings
from tests.support.policy_fixtures import cluster, etcd, own_etcd
from tests.support.tcp_proxy import TcpProxy

__all__ = ["cluster", "etcd", "own_etcd"]


async def test_law_l6_apply_returns_only_when_every_live_gateway_decides_by_the_revision(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys, "fra-1") as one, member(etcd.endpoint, cluster.keys, "sin-1") as two:
        applied = await cluster.apply(WITHOUT_SUPPORT)
        assert (one.revision, two.revision) == (2, 2)
        assert applied.acknowledged == ("fra-1", "sin-1")
        assert applied.expired == ()
        assert one.presence.is_fresh
        assert two.presence.is_fresh


async def test_law_l6_a_gateway_that_is_cut_off_has_lost_freshness_when_apply_returns(etcd, cluster):
    await cluster.apply()
    async with TcpProxy(etcd.client_port) as proxy, member(proxy.address, cluster.keys) as it:
        proxy.pause()
        applied = await cluster.apply(WITHOUT_SUPPORT)
        assert not it.presence.is_fresh
        assert it.revision == 1
        assert applied.expired == ("fra-1",)
        proxy.resume()
        assert await it.presence.wait_registered(deadline())
        await eventually(lambda: it.revision == 2 and it.presence.is_fresh)


async def test_law_l6_a_paused_gateway_that_wakes_up_is_never_fresh_with_the_old_law(etcd, cluster):
    await cluster.apply()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.presence_process", etcd.endpoint, cluster.keys.root.split("/")[2]),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 10)
        assert line.split()[1:] == [b"1", b"1"]
        process.send_signal(signal.SIGSTOP)
        applied = await cluster.apply(WITHOUT_SUPPORT)
        effective = time.monotonic()
        assert applied.expired == ("fra-1",)
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            while (line := await process.stdout.readline()).split()[1:] != [b"1", b"2"]:
                moment, is_fresh, revision = line.split()
                assert float(moment) < effective or not (is_fresh == b"1" and revision == b"1")
    finally:
        process.kill()
        await process.wait()


async def test_law_l6_a_gateway_whose_watch_is_stuck_holds_apply_up_until_it_has_caught_up(etcd, cluster):
    await cluster.apply()
    async with TcpProxy(etcd.client_port) as proxy, _half_cut_member(proxy, etcd, cluster) as it:
        proxy.pause()
        with pytest.raises(PolicyNotEffective) as caught:
            await cluster.apply(WITHOUT_SUPPORT, seconds=3)
        assert caught.value.policy_revision == 2
        assert caught.value.waiting_for == ("fra-1",)
        assert it.presence.is_fresh, "its lease was never in danger: only apply's waiting kept the law"
        assert it.revision == 1
        proxy.resume()
        await eventually(lambda: it.revision == 2)
        assert (await cluster.apply()).acknowledged == ("fra-1",)


@asynccontextmanager
async def _half_cut_member(proxy, etcd, cluster):
    """A gateway that watches through the proxy and keeps its lease alive past it."""
    async with EtcdClient(settings(proxy.address)) as watching, EtcdClient(settings(etcd.endpoint)) as living:
        follower = Follower(watching, cluster.keys, probe_every=timedelta(seconds=0.3))
        presence = Presence(
            living,
            cluster.keys,
            follower,
            gateway="fra-1",
            idc="fra",
            address="",
            peer_address="",
            ttl=timedelta(seconds=2),
        )
        await follower.start()
        await presence.start()
        assert await presence.wait_registered(deadline())
        yield Member(follower, presence)
        await presence.stop()
        await follower.stop()


async def test_law_l6_a_gateway_that_starts_in_the_middle_of_an_apply_does_not_serve_by_the_old_law(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        assert await it.follower.wait_loaded(deadline())
        await it.follower.stop()  # it has loaded revision 1, and hears of nothing more
        applied = await cluster.apply(WITHOUT_SUPPORT)
        assert applied.acknowledged == applied.expired == ()
        await it.presence.start()
        assert not await it.presence.wait_registered(deadline(1.2))
        assert not it.presence.is_fresh
        await it.follower.start()
        assert await it.presence.wait_registered(deadline())
        assert it.revision == 2


async def test_law_l6_freshness_ends_while_etcd_is_stopped_and_comes_back_with_it(own_etcd):
    async with EtcdClient(settings(own_etcd.endpoint)) as client:
        cluster = Cluster(client, Keys("stopped"))
        await cluster.apply()
        async with member(own_etcd.endpoint, cluster.keys) as it:
            own_etcd.send_signal(signal.SIGSTOP)
            await eventually(lambda: not it.presence.is_fresh, 3)
            assert it.revision == 1, "the table stays for what is local"
            with pytest.raises(StoreUnavailable):
                await cluster.apply(WITHOUT_SUPPORT)
            own_etcd.send_signal(signal.SIGCONT)
            await eventually(lambda: it.presence.is_fresh)
            await own_etcd.kill()
            await eventually(lambda: not it.presence.is_fresh, 3)
            await own_etcd.start()
            await eventually(lambda: it.presence.is_fresh)
            await cluster.apply(document=WITHOUT_SUPPORT)
            assert it.revision == (await cluster.store.newest_revision())


async def test_law_l6_a_gateway_whose_record_somebody_deleted_is_not_fresh_until_it_is_registered_again(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys) as it:
        (item,) = (await cluster.client.list(cluster.keys.gateways)).items
        await cluster.client.delete(item.key)
        await eventually(lambda: not it.presence.is_fresh)
        await eventually(lambda: it.presence.is_fresh)
        (again,) = (await cluster.client.list(cluster.keys.gateways)).items
        assert again.key != item.key


async def test_law_l6_a_gateway_that_cannot_read_the_law_withdraws_and_does_not_hold_up_others(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys) as it:
        unreadable = PolicyRevision(2, 1, "?", "", "", "", rules={"version": 99})
        await cluster.client.put(cluster.keys.policy_revision(2), unreadable.encode())
        await cluster.client.put(cluster.keys.policy_current, CurrentPolicy(2).encode())
        assert await it.follower.wait_until(lambda: bool(it.follower.problem), deadline())
        assert not it.presence.is_fresh, "in the very moment in which the law is known to be unreadable"
        await eventually(lambda: not it.presence.is_registered)
        applied = await wait_effective(cluster.client, cluster.keys, 2, 0, deadline=deadline(5), schema_grace=0)
        assert applied.is_effective
        await cluster.client.put(cluster.keys.policy_current, CurrentPolicy(1).encode())
        await eventually(lambda: it.presence.is_fresh)


async def test_law_l6_freshness_goes_before_the_record_when_a_gateway_stops(etcd, cluster):
    await cluster.apply()
    async with TcpProxy(etcd.client_port) as proxy, member(proxy.address, cluster.keys) as it:
        proxy.pause()
        stopping = asyncio.ensure_future(it.presence.stop())
        await asyncio.sleep(0)
        assert not it.presence.is_fresh
        assert (await cluster.client.list(cluster.keys.gateways)).items
        proxy.resume()
        await stopping
        assert not (await cluster.client.list(cluster.keys.gateways)).items
