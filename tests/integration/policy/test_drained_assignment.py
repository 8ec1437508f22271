"""First owners are given by the controller, and never in an IDC that is drained; over a real etcd."""

from __future__ import annotations

from datetime import timedelta

import pytest

from policy.controller.act import Actor, WorldChanged
from policy.controller.decide import Assign, World, decide
from policy.controller.orders import Orders as FollowedOrders
from policy.controller.peers import PeerCalls
from policy.rollouts import Orders, Signature
from runtime.etcd import Election, Lease
from tests.support.cluster import deadline, member


async def test_a_first_owner_is_not_in_an_idc_that_was_drained_also_when_that_was_ordered_meanwhile(etcd, cluster):
    await cluster.apply()
    followed = FollowedOrders(cluster.client, cluster.keys)
    async with (
        member(etcd.endpoint, cluster.keys, register=False) as it,
        Lease.grant(cluster.client, timedelta(seconds=5)) as lease,
    ):
        await it.follower.wait_loaded(deadline())
        leadership = await Election(cluster.client, cluster.keys.controller_election, b"one").campaign(lease)
        actor = Actor(cluster.client, cluster.keys, leadership, peers=PeerCalls(None, 1.0), orders=followed)

        async def act(world_before):
            actor.order_mod_revision = world_before[1]
            turn = decide(World(it.follower.table.policy, {}, {}, drained=world_before[0]))
            assigned = [action for action in turn.actions if isinstance(action, Assign)]
            await actor.perform(assigned, {}, it.follower.policy_mod_revision)

        before = await followed.read_drained()
        await Orders(cluster.store).drain_idc("ams", Signature())
        with pytest.raises(WorldChanged):
            await act(before)
        assert await cluster.store.owners() == {}
        await act(await followed.read_drained())
        owners = await cluster.store.owners()
        assert len(owners) == 16
        assert "ams" not in owners.values()
