"""The law on both sides of a row's move, each by its own judgement, and as it is when the row leaves (laws L1, L6)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from policy.errors import AccessDenied
from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1 import types_pb2
from tests.support.gateways import Site, refusal, running_site
from tests.support.row_move_site import POLICY, STEPS, columns, conductor, get, key, move, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FROM_FRA = [("x-regiongate-ingress", "fra")]


@pytest.fixture
async def site(etcd, postgres_server) -> AsyncIterator[Site]:
    async with running_site(etcd.endpoint, postgres_server, "fra", "sin", "sha", policy=POLICY) as running:
        yield running


def arrival(text: str, purpose: str = "relocation", *askers: str, region: str = "SG") -> pb.ReceiveRowRequest:
    from policy.sharding import shard_of

    return pb.ReceiveRowRequest(
        step=pb.ROW_MOVE_STEP_ARRIVE,
        move_id="m-1",
        dataset="customers",
        shard=pb.ShardRef(region_code=region, shard=shard_of(text, 2), epoch=1),
        key=key(text),
        from_region_code="DE",
        request_id="r-1",
        columns=columns(),
        purpose=purpose,
        asking_idcs=askers or ("fra",),
    )


async def test_the_new_home_judges_for_itself_and_takes_nothing_that_it_may_not(site: Site) -> None:
    receive = site["sin"].shards.ReceiveRow
    wrong_shard = arrival("k")
    wrong_shard.shard.shard = 1 - wrong_shard.shard.shard
    stale = arrival("k")
    stale.shard.epoch = 9
    unknown = arrival("k")
    unknown.columns["more"].string_value = "x"
    nobody = arrival("k")
    nobody.ClearField("asking_idcs")
    for request, reason in (
        (arrival("k", "entry"), "ACCESS_DENIED"),
        (arrival("k", "support"), "ACCESS_DENIED"),
        (arrival("k", "relocation", "sha"), "ACCESS_DENIED"),
        (arrival("k", "relocation", "fra", "sha"), "ACCESS_DENIED"),
        (arrival("k", region="CN"), "ACCESS_DENIED"),
        (arrival("k", region="FR"), "ACCESS_DENIED"),
        (wrong_shard, "INVALID_INPUT"),
        (nobody, "INVALID_INPUT"),
        (unknown, "SCHEMA_DIFFERS"),
        (stale, "STALE_EPOCH"),
    ):
        assert (await refusal(receive(request, timeout=5, metadata=FROM_FRA)))[1] == reason, request
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site["sin"].rows.GetRow(get("SG", "k"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await receive(arrival("k"), timeout=5, metadata=FROM_FRA)).state == "arrived"
    # Of a move that nobody has begun: its old home says so, and the new one lets it go.
    async with asyncio.timeout(15):
        while True:
            try:
                await site["sin"].rows.GetRow(get("SG", "k"), timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return


async def test_a_law_that_changes_after_the_arrival_keeps_the_row_where_it_was(site: Site) -> None:
    await site["fra"].rows.PutRow(put("DE", "k"), timeout=5)
    async with conductor(site, "fra") as fra:
        thaw = asyncio.Event()
        fra.homes.pauses_after[STEPS["arrive"]] = thaw
        moving = asyncio.create_task(fra.move(move("DE", "k", "SG")))
        await fra.homes.reached.wait()
        narrower = "from: [SG], operations: [write], purposes: [relocation]"
        await site.apply(POLICY.replace("from: [SG], operations: [read, write], purposes: [relocation]", narrower))
        thaw.set()
        with pytest.raises(AccessDenied) as denied:
            await moving
        assert (denied.value.rule, denied.value.policy_revision) == ("europe", 2)
        row = (await site["fra"].rows.GetRow(get("DE", "k"), timeout=5)).row
        assert row.columns["name"] == types_pb2.Value(string_value="Ada")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site["sin"].rows.GetRow(get("SG", "k"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
