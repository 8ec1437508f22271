"""Leases and elections on real etcd."""

import asyncio
import time
from datetime import timedelta

import pytest

from runtime.etcd import Election, EtcdClient, EtcdLeaseLost, Lease, put_op
from runtime.etcd.methods import LEASE_GRANT
from runtime.etcd.pb import rpc_pb2 as pb
from tests.support.etcd import etcdctl, settings_of, until

TTL = timedelta(seconds=2)


async def test_a_lease_holds_its_keys_while_it_is_kept_and_lets_them_go_at_once(client, prefix):
    async with Lease.grant(client, TTL) as lease:
        await client.put(prefix + "k", b"", lease=lease.id)
        granted = lease.deadline
        assert lease.ttl >= TTL
        assert 0 < granted - time.monotonic() <= lease.ttl.total_seconds()
        async with asyncio.timeout(lease.ttl.total_seconds() + 3):
            await until(lambda: lease.deadline > granted + lease.ttl.total_seconds() / 2)
        assert lease.is_alive
        assert (await client.get(prefix + "k")).lease == lease.id
    assert lease.done.is_set()
    assert not lease.is_alive
    assert await client.get(prefix + "k") is None


async def test_a_lease_that_someone_revokes_is_noticed_at_the_next_renewal(client, etcd):
    async with Lease.grant(client, TTL) as lease:
        etcdctl(etcd, "lease", "revoke", f"{lease.id:x}")
        async with asyncio.timeout(TTL.total_seconds()):
            await lease.done.wait()
        assert not lease.is_alive
        assert lease.deadline > time.monotonic()  # known from etcd, before our own deadline


async def test_asking_twice_for_the_same_lease_gives_one(client, etcd):
    lease = Lease(client, 4711)
    await client.transport.call(LEASE_GRANT, pb.LeaseGrantRequest(ID=4711, TTL=5))
    await lease._obtain(timedelta(seconds=5))
    assert lease.is_alive
    lease._end()
    etcdctl(etcd, "lease", "revoke", f"{4711:x}")


async def test_candidates_lead_one_after_the_other_with_rising_tokens(client, etcd, prefix):
    first, second = Election(client, prefix, b"first"), Election(client, prefix, b"second")
    async with Lease.grant(client, TTL) as one, Lease.grant(client, TTL) as two:
        leader = await first.campaign(one)
        assert leader.is_leader
        waiting = asyncio.create_task(second.campaign(two))
        async with asyncio.timeout(5):
            while len((await client.list(prefix)).items) < 2:
                pass
        assert (await second.leader()).value == b"first"
        assert not waiting.done()
        await leader.resign()
        async with asyncio.timeout(5):
            next_leader = await waiting
        assert not leader.is_leader
        assert next_leader.token > leader.token
        assert (await first.leader()).value == b"second"


async def test_a_former_leader_that_still_believes_writes_nothing(client, etcd, prefix):
    election = Election(client, prefix + "office", b"")
    async with Lease.grant(client, TTL) as one, Lease.grant(client, TTL) as two:
        former = await election.campaign(one)
        etcdctl(etcd, "del", former.key)  # etcd has let it go, and it does not know yet
        current = await election.campaign(two)
        assert former.is_leader
        assert not (await client.transact([former.compare], [put_op(prefix + "k", b"old")])).succeeded
        assert (await client.transact([current.compare], [put_op(prefix + "k", b"new")])).succeeded
    assert await election.leader() is None


async def test_a_candidate_whose_lease_ends_is_told(client, etcd, prefix):
    async with Lease.grant(client, TTL) as one, Lease.grant(client, TTL) as two:
        await Election(client, prefix, b"").campaign(one)
        waiting = asyncio.create_task(Election(client, prefix, b"").campaign(two))
        async with asyncio.timeout(5):
            while len((await client.list(prefix)).items) < 2:
                pass
        etcdctl(etcd, "lease", "revoke", f"{two.id:x}")
        with pytest.raises(EtcdLeaseLost):
            await waiting


async def test_a_candidate_that_gives_up_leaves_no_key_behind(client, prefix):
    async with Lease.grant(client, TTL) as one, Lease.grant(client, TTL) as two:
        leader = await Election(client, prefix, b"").campaign(one)
        waiting = asyncio.create_task(Election(client, prefix, b"").campaign(two))
        async with asyncio.timeout(5):
            while len((await client.list(prefix)).items) < 2:
                pass
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert [item.key for item in (await client.list(prefix)).items] == [leader.key]


async def test_a_lease_ends_with_its_client_unreachable_without_waiting_long(etcd):
    async with EtcdClient(settings_of(etcd)) as client:
        async with Lease.grant(client, TTL) as lease:
            await client.close()
        assert lease.done.is_set()
