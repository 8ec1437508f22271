"""Watching and following real etcd."""

import asyncio
from contextlib import aclosing
from datetime import timedelta

import pytest

from runtime.etcd import EtcdClient, EtcdCompacted, delete_op, put_op
from tests.support.etcd import etcdctl, settings_of, until, watchers
from tests.support.tcp_proxy import TcpProxy


async def test_changes_come_in_order_and_a_revision_is_never_split(client, prefix):
    first = await client.put(prefix + "a", b"1")
    last = (await client.transact([], [put_op(prefix + "b", b"2"), delete_op(prefix + "a")])).revision
    async with aclosing(client.watch(prefix, start_revision=first)) as batches:
        async with asyncio.timeout(5):
            events = [event async for event in _events(batches, last)]
    assert [(event.kind, event.item.key, event.item.mod_revision) for event in events] == [
        ("put", prefix + "a", first),
        ("put", prefix + "b", last),
        ("delete", prefix + "a", last),
    ]
    assert events[0].previous is None
    assert events[2].previous.value == b"1"


async def _events(batches, last):
    async for batch in batches:
        assert batch.events[-1].item.mod_revision == batch.revision
        for event in batch.events:
            yield event
        if batch.revision >= last:
            return


async def test_a_revision_that_needs_several_messages_arrives_as_one(client, prefix):
    # One revision holds at most 1.5 MB; with the values before, the answer exceeds what one message may hold.
    operations = [put_op(f"{prefix}{number:03}", bytes(11_000)) for number in range(120)]
    await client.transact([], operations)
    revision = (await client.transact([], operations)).revision
    async with aclosing(client.watch(prefix, start_revision=revision)) as batches:
        async with asyncio.timeout(5):
            batch = await anext(batches)
    assert batch.revision == revision
    assert len(batch.events) == 120


async def test_a_watch_that_is_left_is_forgotten_by_the_server(client, etcd, prefix):
    before = watchers(etcd)
    revision = await client.put(prefix + "a", b"")
    async with aclosing(client.watch(prefix, start_revision=revision)) as batches:
        await anext(batches)
        assert watchers(etcd) == before + 1
    await until(lambda: watchers(etcd) == before)


async def test_a_cancelled_watch_is_forgotten_by_the_server(client, etcd, prefix):
    before = watchers(etcd)
    revision = await client.put(prefix + "a", b"")

    async def watch() -> None:
        async with aclosing(client.watch(prefix, start_revision=revision + 1)) as batches:
            await anext(batches)

    task = asyncio.create_task(watch())
    await until(lambda: watchers(etcd) == before + 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: watchers(etcd) == before)


async def test_history_that_is_gone_is_said_to_be_gone(client, etcd, prefix):
    old = await client.put(prefix + "a", b"1")
    now = await client.put(prefix + "a", b"2")
    etcdctl(etcd, "compaction", str(now))
    with pytest.raises(EtcdCompacted) as caught:
        await anext(client.watch(prefix, start_revision=old))
    assert caught.value.compact_revision == now


async def test_a_watch_without_a_start_is_refused(client, prefix):
    with pytest.raises(ValueError, match="starts at a revision"):
        await anext(client.watch(prefix, start_revision=0))


async def test_a_quiet_watch_stays_open(client, etcd, prefix):
    revision = await client.put(prefix + "a", b"")
    async with (
        TcpProxy(etcd.client_port) as proxy,
        EtcdClient(settings_of(proxy, watch_check_every=timedelta(milliseconds=100))) as quiet,
    ):
        async with aclosing(quiet.watch(prefix, start_revision=revision + 1)) as batches:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(batches)
        assert proxy.connections == 1


async def test_a_follower_gets_the_state_and_then_each_change(client, prefix):
    await client.put(prefix + "a", b"1")
    async with aclosing(client.follow(prefix)) as batches, asyncio.timeout(5):
        snapshot = await anext(batches)
        assert snapshot.is_snapshot
        assert [item.value for item in snapshot.items] == [b"1"]
        revision = await client.put(prefix + "b", b"2")
        change = await anext(batches)
        assert (change.is_snapshot, change.revision) == (False, revision)
        assert change.events[0].item.value == b"2"


async def test_sections_are_listed_at_one_revision_and_changes_come_from_everywhere_below_the_prefix(client, prefix):
    for name in ("shards/1", "history/1", "gateways/1"):
        await client.put(prefix + name, b"")
    sections = (prefix + "shards/", prefix + "gateways/")
    async with aclosing(client.follow(prefix, sections=sections)) as batches, asyncio.timeout(5):
        snapshot = await anext(batches)
        assert [item.key for item in snapshot.items] == [prefix + "shards/1", prefix + "gateways/1"]
        await client.put(prefix + "history/2", b"")
        assert (await anext(batches)).events[0].item.key == prefix + "history/2"


async def test_a_follower_that_missed_compacted_history_gets_a_new_snapshot(client, etcd, prefix):
    await client.put(prefix + "gone", b"")
    async with (
        TcpProxy(etcd.client_port) as proxy,
        EtcdClient(settings_of(proxy)) as cut,
        aclosing(cut.follow(prefix)) as batches,
        asyncio.timeout(15),
    ):
        await anext(batches)
        pending = asyncio.ensure_future(anext(batches))
        await until(lambda: watchers(etcd) > 0)
        await proxy.cut()
        await client.delete(prefix + "gone")
        revision = await client.put(prefix + "b", b"2")
        etcdctl(etcd, "compaction", str(revision))
        await proxy.heal()
        snapshot = await pending
        assert snapshot.is_snapshot
        assert snapshot.revision >= revision
        assert [item.key for item in snapshot.items] == [prefix + "b"]


async def test_listing_again_finds_nothing_wrong_with_a_watch_that_tells_all(client, prefix):
    async with aclosing(client.follow(prefix, relist_every=timedelta(milliseconds=50))) as batches:
        await anext(batches)
        for number in range(100):
            revision = await client.put(f"{prefix}{number % 7}", b"")
            if number % 3 == 0:
                revision = await client.delete(f"{prefix}{number % 5}")
            async with asyncio.timeout(5):
                while (batch := await anext(batches)).revision < revision:
                    assert not batch.is_snapshot
                assert not batch.is_snapshot
