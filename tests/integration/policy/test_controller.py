from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta

import pytest

from policy.controller.act import Actor, WorldChanged
from policy.controller.decide import World, decide
from policy.controller.loop import Controller
from policy.controller.orders import Orders
from policy.controller.peers import PeerCalls
from policy.follower import Follower
from policy.records import GatewayRecord, RolloutRecord, ShardRecord
from runtime.etcd import Election, EtcdClient, Lease
from runtime.telemetry.tracing import Tracing
from tests.support.cluster import WITHOUT_SUPPORT, deadline, eventually, member, settings
from tests.support.fences import serving_fences

IDCS = ("sha", "fra", "ams", "sin")


@asynccontextmanager
async def idcs(cluster, names=IDCS):
    """Each IDC's peer listener, with a record in etcd."""
    async with serving_fences() as fences:
        for idc in names:
            record = GatewayRecord(f"{idc}-1", idc, "", fences.address, 99)
            await cluster.client.put(cluster.keys.gateway(idc, f"{idc}-1"), record.encode())
        yield fences


@asynccontextmanager
async def controller(etcd, cluster, name="one", ttl=2.0):
    async with EtcdClient(settings(etcd.endpoint)) as client:
        follower = Follower(client, cluster.keys)
        peers = PeerCalls(None, 1.0)
        it = Controller(
            client, cluster.keys, follower, peers, name, Tracing("controller", "", 0.0, None), timedelta(seconds=ttl)
        )
        stop = asyncio.Event()
        await follower.start()
        running = asyncio.create_task(it.run(stop))
        try:
            yield it
        finally:
            stop.set()
            await asyncio.wait_for(running, 10)
            await follower.stop()
            await peers.close()


async def rollout_is_done(cluster, rollout, seconds=10):
    async with asyncio.timeout(seconds), aclosing(cluster.client.follow(cluster.keys.rollout(rollout))) as batches:
        async for batch in batches:
            items = (*batch.items, *(event.item for event in batch.events))
            if any(RolloutRecord.decode(item.value).state == "done" for item in items):
                break
    return await cluster.store.rollout(rollout)


async def shards_of(cluster):
    listing = await cluster.client.list(cluster.keys.shards)
    return {cluster.keys.parse_shard(item.key): ShardRecord.decode(item.value) for item in listing.items}


async def test_a_first_policy_ends_with_every_shard_served_by_its_owner(etcd, cluster):
    async with idcs(cluster) as fences, controller(etcd, cluster):
        applied = await cluster.apply()
        rollout = await rollout_is_done(cluster, applied.rollout)
        assert (rollout.shards_done, rollout.shards_total) == (16, 16)
        assert rollout.note == "policy revision 1: every shard is served by its owner"
        shards = await shards_of(cluster)
        assert len(shards) == 16
        assert {(record.phase, record.epoch, record.rollout) for record in shards.values()} == {
            ("serving", 1, applied.rollout)
        }
        assert fences.epochs.keys() == shards.keys()


async def test_an_idc_that_is_not_there_is_named_and_served_when_it_comes(etcd, cluster):
    async with idcs(cluster, ("sha", "fra", "sin")) as fences, controller(etcd, cluster) as it:
        applied = await cluster.apply()
        await eventually(lambda: "of ams wait for a gateway there" in it.sentence)
        record = GatewayRecord("ams-1", "ams", "", fences.address, 99)
        await cluster.client.put(cluster.keys.gateway("ams", "ams-1"), record.encode())
        await rollout_is_done(cluster, applied.rollout)


async def test_an_idc_whose_database_is_down_is_asked_again_until_it_opens(etcd, cluster):
    async with idcs(cluster) as fences, controller(etcd, cluster) as it:
        fences.is_down = True
        applied = await cluster.apply()
        await eventually(lambda: "again after: UNAVAILABLE: the database is down" in it.sentence)
        fences.is_down = False
        await rollout_is_done(cluster, applied.rollout)


async def test_a_second_controller_takes_over_and_finishes(etcd, cluster):
    async with idcs(cluster) as fences:
        fences.is_down = True
        async with controller(etcd, cluster, "one") as one:
            applied = await cluster.apply()
            await eventually(lambda: fences.calls > 0)
            assert one.is_leader
            async with controller(etcd, cluster, "two") as two:
                await eventually(lambda: two.follower.is_loaded)
                assert not two.is_leader
                fences.is_down = False
                await rollout_is_done(cluster, applied.rollout)
        async with controller(etcd, cluster, "three") as three:
            await eventually(lambda: three.is_leader)
            await cluster.apply(WITHOUT_SUPPORT)
            await eventually(lambda: "policy revision 2: every shard" in three.sentence)


async def test_law_l2_a_deposed_controller_that_wakes_up_changes_nothing(etcd, cluster):
    await cluster.apply()
    async with (
        member(etcd.endpoint, cluster.keys, register=False) as it,
        Lease.grant(cluster.client, timedelta(seconds=5)) as old_lease,
        Lease.grant(cluster.client, timedelta(seconds=5)) as new_lease,
    ):
        await it.follower.wait_loaded(deadline())
        old = await Election(cluster.client, cluster.keys.controller_election, b"old").campaign(old_lease)
        turn = decide(World(it.follower.table.policy, {}, {}))
        await cluster.client.delete(old.key)  # its lease has run out while it was paused
        new = await Election(cluster.client, cluster.keys.controller_election, b"new").campaign(new_lease)
        assert new.is_leader
        peers = PeerCalls(None, 1.0)
        with pytest.raises(WorldChanged):
            await Actor(
                cluster.client, cluster.keys, old, peers=peers, orders=Orders(cluster.client, cluster.keys)
            ).perform(turn.actions, {}, it.follower.policy_mod_revision)
        assert await shards_of(cluster) == {}
        await Actor(
            cluster.client, cluster.keys, new, peers=peers, orders=Orders(cluster.client, cluster.keys)
        ).perform(turn.actions, {}, it.follower.policy_mod_revision)
        assert len(await shards_of(cluster)) == 16


async def test_law_l1_an_assignment_decided_by_an_older_policy_changes_nothing(etcd, cluster):
    await cluster.apply()
    async with (
        member(etcd.endpoint, cluster.keys, register=False) as it,
        Lease.grant(cluster.client, timedelta(seconds=5)) as lease,
    ):
        await it.follower.wait_loaded(deadline())
        turn, decided_by = decide(World(it.follower.table.policy, {}, {})), it.follower.policy_mod_revision
        leadership = await Election(cluster.client, cluster.keys.controller_election, b"it").campaign(lease)
        await cluster.apply(WITHOUT_SUPPORT)
        with pytest.raises(WorldChanged):
            await Actor(
                cluster.client,
                cluster.keys,
                leadership,
                peers=PeerCalls(None, 1.0),
                orders=Orders(cluster.client, cluster.keys),
            ).perform(turn.actions, {}, decided_by)
        assert await shards_of(cluster) == {}
