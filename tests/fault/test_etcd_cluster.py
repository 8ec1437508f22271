"""A cluster of three whose leader is killed, or whose members are paused, while it is written to and watched."""

import asyncio
import time
from contextlib import aclosing
from datetime import timedelta

import pytest

from runtime.etcd import Election, EtcdClient, Lease, compare_mod_revision, get_op, put_op
from tests.support.etcd import leader_of, paused, settings_of, three_members, until, whole


@pytest.fixture(scope="module")
def cluster():
    with three_members() as members:
        yield members


@pytest.fixture
async def members(cluster):
    await whole(cluster)
    return cluster


async def until_seen(seen: list[bytes], count: int) -> None:
    await until(lambda: len(seen) >= count)


async def count_up(client: EtcdClient, key: str, stop: asyncio.Event) -> int:
    """Adds one to a number again and again; returns what it must be now."""
    number, revision = 0, 0
    while not stop.is_set():
        mark = f"{number + 1}".encode()
        result = await client.transact([compare_mod_revision(key, revision)], [put_op(key, mark)], [get_op(key)])
        assert result.succeeded, "there is no other writer: a guard that fails means that one addition came twice"
        number, revision = number + 1, result.revision
    return number


async def test_nothing_is_lost_or_done_twice_when_the_leader_is_killed(members):
    leader = await leader_of(members)
    ordered = (leader, *(member for member in members if member is not leader))
    async with EtcdClient(settings_of(*ordered)) as client, EtcdClient(settings_of(*ordered)) as watching:
        start = (await client.get_at("/n"))[1] + 1
        seen: list[bytes] = []

        async def watch() -> None:
            async with aclosing(watching.watch("/n", start_revision=start)) as batches:
                async for batch in batches:
                    seen.extend(event.item.value for event in batch.events)

        watcher = asyncio.create_task(watch())
        stop = asyncio.Event()
        async with asyncio.timeout(60), Lease.grant(client, timedelta(seconds=5)) as lease:
            counter = asyncio.create_task(count_up(client, "/n", stop))
            await until_seen(seen, 20)
            await leader.kill()
            await until_seen(seen, len(seen) + 50)
            await leader.start()
            await until_seen(seen, len(seen) + 50)
            stop.set()
            number = await counter
            await until_seen(seen, number)
            assert lease.is_alive
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        assert (await client.get("/n")).value == str(number).encode()
        assert seen == [str(value).encode() for value in range(1, number + 1)]


async def test_a_paused_member_is_passed_over_by_calls_and_watches(members):
    leader = await leader_of(members)
    member = next(member for member in members if member is not leader)
    others = tuple(other for other in members if other is not member)
    async with EtcdClient(settings_of(member, *others)) as client, EtcdClient(settings_of(*others)) as direct:
        start = await client.put("/k", b"")
        async with aclosing(client.watch("/k", start_revision=start)) as batches, asyncio.timeout(30):
            await anext(batches)
            async with paused(member):
                last = await direct.put("/k", b"")
                began = time.monotonic()
                assert (await anext(batches)).revision == last
                assert time.monotonic() - began < 8
                assert (await client.get("/k")).mod_revision == last


async def test_a_member_without_a_quorum_ends_the_watch_instead_of_letting_it_hang(members):
    alone, *others = members
    async with EtcdClient(settings_of(alone)) as client, EtcdClient(settings_of(*others)) as direct:
        start = await client.put("/k", b"")
        async with aclosing(client.watch("/k", start_revision=start)) as batches, asyncio.timeout(30):
            await anext(batches)
            pending = asyncio.ensure_future(anext(batches))
            await asyncio.gather(*(member.kill() for member in others))
            await until(lambda: not client.is_connected)
            await asyncio.gather(*(member.start() for member in others))
            last = await direct.put("/k", b"")
            assert (await pending).revision == last


async def test_the_next_candidate_leads_when_a_leader_and_etcds_own_leader_die_together(members):
    leader = await leader_of(members)
    first, second = EtcdClient(settings_of(*members)), EtcdClient(settings_of(*members))
    async with (
        asyncio.timeout(30),
        first,
        second,
        Lease.grant(first, timedelta(seconds=2)) as one,
        Lease.grant(second, timedelta(seconds=5)) as two,
    ):
        former = await Election(first, "/office", b"").campaign(one)
        waiting = asyncio.create_task(Election(second, "/office", b"").campaign(two))
        await first.close()  # nobody renews the former leader's lease any more
        await leader.kill()
        current = await waiting
        assert current.token > former.token
        assert not former.is_leader
