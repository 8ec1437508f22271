"""Reads, writes and transactions on real etcd, of the wheel's release and of Debian's."""

import asyncio
import dataclasses
import time
from datetime import timedelta

import pytest
import structlog

from runtime.etcd import (
    EtcdClient,
    EtcdCompacted,
    EtcdRejected,
    EtcdSettings,
    EtcdTooLarge,
    EtcdUnavailable,
    compare_create_revision,
    compare_mod_revision,
    delete_op,
    get_op,
    put_op,
)
from tests.support.etcd import etcdctl, settings_of
from tests.support.ports import free_port


async def test_what_is_put_is_read_until_it_is_deleted(client, prefix):
    key = prefix + "schlüssel"
    assert await client.get(key) is None
    created = await client.put(key, b"\x00\xff")
    item, revision = await client.get_at(key)
    assert (item.key, item.value, item.create_revision, item.mod_revision, item.version) == (
        key,
        b"\x00\xff",
        created,
        created,
        1,
    )
    assert revision >= created
    deleted = await client.delete(key)
    assert deleted > created
    assert await client.get(key) is None


async def test_a_listing_in_pages_is_one_moment_while_others_write(client, etcd, prefix):
    keys = [f"{prefix}{number:03}" for number in range(30)]
    stop = asyncio.Event()

    async def write_all_alike():
        async with EtcdClient(settings_of(etcd)) as other:
            number = 0
            while not stop.is_set():
                number += 1
                await other.transact([], [put_op(key, str(number).encode()) for key in keys])

    await client.transact([], [put_op(key, b"0") for key in keys])
    writer = asyncio.create_task(write_all_alike())
    try:
        for _ in range(5):
            listing = await client.list(prefix, page_size=3)
            assert [item.key for item in listing.items] == keys
            assert len({item.mod_revision for item in listing.items}) == 1
            assert listing.items[0].mod_revision <= listing.revision
    finally:
        stop.set()
        await writer


async def test_a_listing_keeps_to_its_prefix(client, prefix):
    for key in ("a/1", "a/2", "a0", "b"):
        await client.put(prefix + key, b"")
    listing = await client.list(prefix + "a/")
    assert [item.key for item in listing.items] == [prefix + "a/1", prefix + "a/2"]
    assert (await client.list(prefix + "nothing/")).items == ()
    everything = await client.list("")
    assert {item.key for item in (await client.list(prefix)).items} <= {item.key for item in everything.items}


async def test_an_old_revision_can_be_listed_until_it_is_compacted(client, etcd, prefix):
    before = await client.put(prefix + "k", b"old")
    after = await client.put(prefix + "k", b"new")
    assert (await client.list(prefix, revision=before)).items[0].value == b"old"
    etcdctl(etcd, "compaction", str(after))
    with pytest.raises(EtcdCompacted):
        await client.list(prefix, revision=before)


async def test_a_listing_larger_than_an_answer_may_be_comes_in_smaller_pages(etcd, prefix):
    settings = dataclasses.replace(settings_of(etcd), max_message_bytes=1 << 20)
    async with EtcdClient(settings) as client:
        for number in range(12):
            await client.put(f"{prefix}{number:02}", bytes(200_000))
        assert len((await client.list(prefix)).items) == 12


async def test_a_value_over_the_servers_limit_is_refused_as_too_large(client, prefix):
    with pytest.raises(EtcdTooLarge):
        await client.put(prefix + "k", bytes(2 << 20))


async def test_a_transaction_runs_one_branch_and_answers_each_get(client, prefix):
    a, b = prefix + "a", prefix + "b"
    made = await client.transact([compare_create_revision(a, 0)], [put_op(a, b"1"), get_op(b)], [get_op(a)])
    assert made.succeeded
    assert made.results == (None, None)
    again = await client.transact([compare_create_revision(a, 0)], [put_op(a, b"2")], [get_op(a), get_op(b)])
    assert not again.succeeded
    assert again.results[0].value == b"1"
    assert again.results[0].mod_revision == made.revision
    assert again.results[1] is None
    gone = await client.transact([compare_mod_revision(a, made.revision)], [delete_op(a), put_op(b, b"3")])
    assert gone.succeeded
    assert gone.results == (None, None)
    assert [item.key for item in (await client.list(prefix)).items] == [b]


async def test_a_key_twice_in_a_transaction_is_rejected_as_etcd_does(client, prefix):
    with pytest.raises(EtcdRejected, match="duplicate key"):
        await client.transact([], [put_op(prefix + "a", b""), put_op(prefix + "a", b"")])


async def test_two_who_create_the_same_key_cannot_both_succeed(client, etcd, prefix):
    async with EtcdClient(settings_of(etcd)) as other:
        results = await asyncio.gather(
            *(
                who.transact([compare_create_revision(prefix + "k", 0)], [put_op(prefix + "k", str(number).encode())])
                for number, who in enumerate([client, other] * 10)
            )
        )
    assert sum(result.succeeded for result in results) == 1


async def test_a_dead_first_endpoint_is_passed_over_even_by_writes_that_may_not_be_repeated(etcd, prefix):
    settings = settings_of(etcd)
    settings = dataclasses.replace(settings, endpoints=(f"127.0.0.1:{free_port()}", *settings.endpoints))
    async with EtcdClient(settings) as client:
        assert (await client.transact([], [put_op(prefix + "k", b"")])).succeeded
        assert client.is_connected


async def test_no_etcd_at_all_is_reported_within_the_deadline():
    settings = EtcdSettings((f"127.0.0.1:{free_port()}",), request_timeout=timedelta(milliseconds=300))
    async with EtcdClient(settings) as client:
        start = time.monotonic()
        with pytest.raises(EtcdUnavailable) as caught:
            await client.put("/k", b"secret")
        assert time.monotonic() - start < 5
        assert not caught.value.may_have_applied
        assert "secret" not in str(caught.value)
        assert not client.is_connected
        assert client.last_contact == float("-inf")


async def test_a_closed_client_says_so(etcd):
    async with EtcdClient(settings_of(etcd)) as client:
        await client.get("/k")
    with pytest.raises(EtcdRejected, match="closed"):
        await client.get("/k")


async def test_two_clusters_behind_one_name_are_noticed(wheel_etcd, debian_etcd, prefix):
    async with EtcdClient(settings_of(wheel_etcd, debian_etcd)) as client:
        await client.get(prefix)
        client.transport.endpoints.fail(0)
        with pytest.raises(EtcdRejected, match="another cluster"):
            await client.get(prefix)


async def test_a_release_that_can_corrupt_data_is_warned_of(wheel_etcd, debian_etcd):
    for etcd, warnings in ((wheel_etcd, 1), (debian_etcd, 0)):
        async with EtcdClient(settings_of(etcd)) as client:
            with structlog.testing.capture_logs() as logs:
                status = await client.status()
            assert status.leader == status.member_id != 0
            assert sum("corrupt" in entry["event"] for entry in logs) == warnings
