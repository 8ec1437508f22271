from __future__ import annotations

import asyncio

from policy.records import CurrentPolicy, PolicyRevision, ShardRecord
from tests.support.cluster import POLICY, WITHOUT_SUPPORT, deadline, eventually, member


async def test_a_follower_without_a_policy_is_loaded_and_has_no_table(etcd, cluster):
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        assert await it.follower.wait_loaded(deadline())
        assert it.follower.table is None
        assert it.follower.policy_mod_revision == 0


async def test_a_follower_has_the_policy_and_the_shards_that_were_there_before_it(etcd, cluster):
    await cluster.apply()
    await cluster.client.put(cluster.keys.shard("DE", 1), ShardRecord("fra", 1, "serving", 1).encode())
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        assert await it.follower.wait_loaded(deadline())
        assert it.revision == 1
        assert it.follower.table.route("DE", 1).idc == "fra"
        assert it.follower.table.route("DE", 0) is None


async def test_a_follower_takes_each_change_as_it_happens(etcd, cluster):
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        await cluster.apply()
        await eventually(lambda: it.revision == 1)
        seen = it.follower.table.store_revision
        await cluster.client.put(cluster.keys.shard("DE", 1), ShardRecord("fra", 1, "opening", 1).encode())
        assert await it.follower.wait_beyond(seen, deadline())
        assert it.follower.table.route("DE", 1).phase == "opening"
        seen = it.follower.table.store_revision
        await cluster.client.delete(cluster.keys.shard("DE", 1))
        assert await it.follower.wait_beyond(seen, deadline())
        assert it.follower.table.route("DE", 1) is None
        await cluster.apply(WITHOUT_SUPPORT)
        await eventually(lambda: it.revision == 2)


async def test_waiting_for_a_newer_table_ends_at_its_deadline(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        await it.follower.wait_loaded(deadline())
        assert not await it.follower.wait_beyond(it.follower.table.store_revision, deadline(0.05))


async def test_a_slow_subscriber_gets_the_newest_table_only(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        await it.follower.wait_loaded(deadline())
        tables = it.follower.subscribe()
        first = await anext(tables)
        assert first.policy.revision == 1
        await cluster.apply(WITHOUT_SUPPORT)
        await cluster.apply(POLICY)
        await eventually(lambda: it.revision == 3)
        assert (await anext(tables)).policy.revision == 3
        with_nothing_new = asyncio.ensure_future(anext(tables))
        done, _ = await asyncio.wait({with_nothing_new}, timeout=0.05)
        assert not done
        with_nothing_new.cancel()


async def test_a_follower_goes_on_after_the_history_was_compacted(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        await it.follower.wait_loaded(deadline())
        await it.follower.stop()
        await cluster.apply(WITHOUT_SUPPORT)
        await cluster.client.put(cluster.keys.shard("DE", 1), ShardRecord("fra", 1, "serving", 2).encode())
        await it.follower.start()
        await eventually(lambda: it.revision == 2 and it.follower.table.route("DE", 1) is not None)


async def test_a_record_that_vanished_unseen_is_gone_after_the_next_snapshot(etcd, cluster):
    await cluster.apply()
    await cluster.client.put(cluster.keys.shard("DE", 1), ShardRecord("fra", 1, "serving", 1).encode())
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        await it.follower.wait_loaded(deadline())
        await it.follower.stop()
        await cluster.client.delete(cluster.keys.shard("DE", 1))
        await it.follower.start()
        await eventually(lambda: it.follower.table.route("DE", 1) is None)


async def test_law_l8_a_policy_that_cannot_be_read_is_a_problem_and_not_a_guess(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        await it.follower.wait_loaded(deadline())
        broken = PolicyRevision(2, 1, "?", "", "", "", rules={"version": 99})
        await cluster.client.put(cluster.keys.policy_revision(2), broken.encode())
        await cluster.client.put(cluster.keys.policy_current, CurrentPolicy(2).encode())
        await eventually(lambda: bool(it.follower.problem))
        assert it.revision == 1
        await cluster.client.put(cluster.keys.policy_current, CurrentPolicy(1).encode())
        await eventually(lambda: not it.follower.problem)


async def test_law_l8_a_shard_whose_record_cannot_be_read_has_no_owner(etcd, cluster):
    await cluster.apply()
    await cluster.client.put(cluster.keys.shard("DE", 1), ShardRecord("fra", 1, "serving", 1).encode())
    async with member(etcd.endpoint, cluster.keys, register=False) as it:
        await eventually(lambda: it.follower.table is not None and it.follower.table.route("DE", 1) is not None)
        await cluster.client.put(cluster.keys.shard("DE", 1), b"gibberish")
        await eventually(lambda: it.follower.table.route("DE", 1) is None)
