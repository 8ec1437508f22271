"""Moves that do not get on, over a real etcd: the IDCs' listeners know no step of a move."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from policy.controller.drive import MoveDriver
from policy.controller.peers import PeerCalls, StepFailed
from policy.records import GatewayRecord, MoveRecord
from policy.rollouts import Orders, Signature
from regiongate.v1 import shard_service_pb2 as pb
from tests.integration.policy.test_controller import controller, idcs, rollout_is_done
from tests.support.cluster import deadline, eventually
from tests.support.fences import serving_fences
from tests.support.standing_shards import read_shard

ADA = Signature("ada")


async def the_move(cluster, rollout, holds):
    """The move of DE/0, once the condition holds for it."""
    async with asyncio.timeout_at(deadline()):
        while True:
            item = await cluster.client.get(cluster.keys.move(rollout, "DE", 0))
            if item is not None and holds(record := MoveRecord.decode(item.value)):
                return record
            await asyncio.sleep(0.01)


async def test_a_move_says_in_its_record_what_it_waits_for_and_why_it_was_called_off(etcd, cluster):
    async with idcs(cluster), controller(etcd, cluster):
        await rollout_is_done(cluster, (await cluster.apply()).rollout)
        owner = (await read_shard(cluster, "DE", 0)).owner
        orders = Orders(cluster.store)
        moving = await orders.move_shard("DE", 0, "ams" if owner == "fra" else "fra", ADA)
        waiting = await the_move(cluster, moving.rollout, lambda move: move.note)
        assert waiting.note.startswith(f"copying: {owner}: UNIMPLEMENTED")
        await orders.cancel(moving.rollout, "ada")
        ended = await the_move(cluster, moving.rollout, lambda move: move.phase == "aborting")
        assert ended.note == "no rollout wants it any more"
        assert (await read_shard(cluster, "DE", 0)).owner == owner


async def test_a_channel_that_is_closed_under_a_step_is_a_failure_and_no_cancellation():
    async with serving_fences() as fences:
        peers = PeerCalls(None, 5.0)
        fences.flowing.clear()
        request = pb.OpenShardsRequest(shards=[pb.ShardRef(region_code="DE", shard=0, epoch=1)])
        step = asyncio.create_task(
            peers.step("fra", (fences.address,), "OpenShards", request, timeout=5.0, traceparent="")
        )
        await eventually(lambda: fences.calls)
        await peers.keep_only(set())
        with pytest.raises(StepFailed) as failed:
            await asyncio.wait_for(step, 5)
        assert failed.value.status == grpc.StatusCode.UNAVAILABLE.name
        assert not step.cancelled()


def test_after_each_failure_another_gateway_is_asked_first():
    gateways = {"ams": tuple(GatewayRecord(f"ams-{n}", "ams", "", f"ams:{n}", 1) for n in (1, 2, 3))}
    context = SimpleNamespace(
        client=None,
        keys=SimpleNamespace(shard=lambda *_: "", move=lambda *_: ""),
        follower=SimpleNamespace(gateways=gateways),
        leadership=SimpleNamespace(compare=None),
        audit=None,
    )
    driver = MoveDriver(context, ("DE", 0))
    asked = []
    for driver._failures in range(4):
        asked.append(driver._peers("ams")[0])
        assert set(driver._peers("ams")) == {"ams:1", "ams:2", "ams:3"}
    assert asked == ["ams:1", "ams:2", "ams:3", "ams:1"]
    assert driver._peers("sin") == ()
