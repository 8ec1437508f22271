"""The way to etcd is cut, swallows answers, or leads to a server that is paused."""

import asyncio
import time
from contextlib import aclosing
from datetime import timedelta

import pytest

from runtime.etcd import EtcdClient, EtcdUnavailable, Lease, compare_create_revision, put_op
from tests.support.etcd import paused, running_etcd, settings_of, until, watchers
from tests.support.tcp_proxy import TcpProxy

TTL = timedelta(seconds=2)


@pytest.fixture(scope="module")
def etcd():
    with running_etcd() as etcd:
        yield etcd


@pytest.fixture
async def direct(etcd):
    async with EtcdClient(settings_of(etcd)) as client:
        yield client


@pytest.fixture
async def proxy(etcd):
    async with TcpProxy(etcd.client_port) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy):
    async with EtcdClient(settings_of(proxy)) as client:
        yield client


async def collect(batches, last: int) -> list[int]:
    """Revisions of the events up to `last`, with repetitions if there are any."""
    revisions = []
    async for batch in batches:
        revisions += [event.item.mod_revision for event in batch.events]
        if batch.revision >= last:
            break
    return revisions


async def test_a_watch_misses_nothing_and_repeats_nothing_over_many_cuts(etcd, direct, proxy, client):
    start = await direct.put("/cut/0", b"")
    async with aclosing(client.watch("/cut/", start_revision=start)) as batches, asyncio.timeout(30):
        written, seen = [start], []
        for number in range(8):
            written += [await direct.put(f"/cut/{number}", b"") for _ in range(20)]
            if number % 2:
                await proxy.cut_connections()
                written.append(await direct.put("/cut/during", b""))
            seen += await collect(batches, written[-1])
        assert seen == written
        assert proxy.connections > 4


async def test_a_watch_notices_a_network_that_swallows_everything(etcd, direct, proxy, client):
    start = await direct.put("/swallow/k", b"")
    async with aclosing(client.watch("/swallow/", start_revision=start)) as batches, asyncio.timeout(30):
        await anext(batches)
        pending = asyncio.ensure_future(anext(batches))
        proxy.pause()
        last = await direct.put("/swallow/k", b"")
        await until(lambda: not client.is_connected)  # by its own asking, long before TCP would tell
        proxy.resume()
        assert (await pending).revision == last


async def test_a_paused_server_holds_no_call_beyond_its_deadline_and_loses_no_watch(etcd, direct, client):
    start = await direct.put("/paused/k", b"")
    async with aclosing(client.watch("/paused/", start_revision=start)) as batches, asyncio.timeout(30):
        await anext(batches)
        pending = asyncio.ensure_future(anext(batches))
        async with paused(etcd):
            began = time.monotonic()
            with pytest.raises(EtcdUnavailable) as caught:
                await direct.transact([], [put_op("/other", b"")])
            assert time.monotonic() - began < 5
            assert caught.value.may_have_applied
        last = await direct.put("/paused/k", b"")
        assert (await pending).revision == last


async def test_a_guarded_transaction_whose_answer_is_lost_still_tells_the_truth(etcd, direct, proxy, client):
    await client.get("/lost/k")
    proxy.swallow_answers()
    guarded = asyncio.create_task(
        client.transact([compare_create_revision("/lost/k", 0)], [put_op("/lost/k", b"unique")])
    )
    async with asyncio.timeout(10):
        while (item := await direct.get("/lost/k")) is None:
            pass
    await proxy.cut_connections()
    proxy.resume()
    result = await guarded
    assert result.succeeded
    assert result.revision == item.mod_revision
    assert (await direct.get("/lost/k")).version == 1


async def test_an_unguarded_transaction_whose_answer_is_lost_is_not_sent_again(etcd, direct, proxy, client):
    await client.get("/lost/u")
    proxy.swallow_answers()
    unguarded = asyncio.create_task(client.transact([], [put_op("/lost/u", b"")]))
    async with asyncio.timeout(10):
        while await direct.get("/lost/u") is None:
            pass
    await proxy.cut_connections()
    proxy.resume()
    with pytest.raises(EtcdUnavailable) as caught:
        await unguarded
    assert caught.value.may_have_applied
    assert (await direct.get("/lost/u")).version == 1


async def test_a_lease_that_cannot_be_renewed_ends_by_our_clock_before_etcd_gives_it_up(etcd, direct, proxy, client):
    async with Lease.grant(client, TTL) as lease:
        await client.put("/lease/k", b"", lease=lease.id)
        proxy.pause()
        cut = time.monotonic()
        async with asyncio.timeout(10):
            await lease.done.wait()
        assert time.monotonic() - cut <= lease.ttl.total_seconds() + 0.5
        assert not lease.is_alive
        assert await direct.get("/lease/k") is not None  # etcd has not let go yet: we were the first to know
        proxy.resume()
        await client.get("/lease/k")
        assert not lease.is_alive  # lost is lost


async def test_a_process_that_slept_through_its_lease_knows_at_once(etcd, direct):
    async with Lease.grant(direct, TTL) as lease:
        deadline = lease.deadline
        # A paused process runs no timer: what it is asked first must be judged by the clock.
        time.sleep(max(0.0, deadline - time.monotonic()) + 0.01)  # noqa: ASYNC251 (the pause itself)
        assert not lease.done.is_set()
        assert not lease.is_alive


async def test_a_lease_outlives_a_short_cut(etcd, direct, proxy, client):
    async with Lease.grant(client, timedelta(seconds=4)) as lease:
        granted = lease.deadline
        await proxy.cut()
        await until(lambda: not client.is_connected)
        await proxy.heal()
        async with asyncio.timeout(4):
            await until(lambda: lease.deadline > granted)
        assert lease.is_alive


async def test_a_closed_client_leaves_no_watch_at_the_server(etcd, direct):
    before = watchers(etcd)
    async with EtcdClient(settings_of(etcd)) as client:
        revision = await client.put("/closed/k", b"")
        batches = client.watch("/closed/", start_revision=revision)
        await anext(batches)
        assert watchers(etcd) == before + 1
    await until(lambda: watchers(etcd) == before)
    await batches.aclose()
