"""Gateways that refuse, break off, fall silent, die and come back; the client goes on, and writes nothing twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta

import pytest

import regiongate
from gateway.client import ClientSettings
from policy.errors import DatabaseUnavailable, NotOwnedHere, ShardUnavailable, Unavailable, VersionConflict
from policy.sharding import shard_of
from regiongate.errors import DeadlineExceeded, LimitReached, RegiongateError
from tests.integration.client.cluster import SHARDS, running
from tests.integration.client.test_calls import key_owned_by

QUICK = ClientSettings(attempt_timeout=timedelta(seconds=0.3))


async def test_a_shard_that_is_unavailable_for_a_moment_is_tried_again_with_the_same_request_id_law_l3():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        world = sites["sin"].world
        sites["sin"].failures.extend([ShardUnavailable("opening"), DatabaseUnavailable("away")])
        await client.put("customers", "SG", "k", {"spend": 1})
        assert [a.action for a in world.asked] == ["put"] * 3
        assert len({a.request_id for a in world.asked}) == 1
        assert world.asked[0].request_id


async def test_a_conflict_is_never_tried_again_law_l4():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        sites["sin"].failures.append(VersionConflict("other version", current=3))
        with pytest.raises(VersionConflict):
            await client.put("customers", "SG", "k", {"spend": 1}, if_version=2)
        assert len(sites["sin"].world.asked) == 1


async def test_a_write_that_was_done_and_not_answered_is_done_once_law_l3():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        world = sites["sin"].world
        sites["sin"].breaks_after_write = 2
        receipt = await client.put("customers", "SG", "k", {"spend": 1})
        assert len(world.asked) == 3
        assert world.versions == receipt.version == 1
        sites["sin"].breaks_after_write = 1
        await client.delete("customers", "SG", "k", if_version=1)
        assert world.versions == 2


async def test_a_limit_on_size_is_not_tried_again():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        sites["sin"].failures.append(LimitReached("the row is too large", limit="row_bytes"))
        with pytest.raises(LimitReached):
            await client.put("customers", "SG", "k", {"spend": 1})
        assert len(sites["sin"].world.asked) == 1


async def test_the_last_failure_is_told_when_the_time_is_over():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        sites["sin"].failures.extend(ShardUnavailable("still opening") for _ in range(1000))
        start = time.monotonic()
        with pytest.raises(ShardUnavailable, match="still opening"):
            await client.get("customers", "SG", "k", timeout=0.4)
        assert time.monotonic() - start < 2
        assert len(sites["sin"].world.asked) < 30


async def test_a_silent_gateway_does_not_hold_a_call_beyond_its_time():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        sites["sin"].works.clear()
        long = asyncio.create_task(client.get("customers", "SG", "k", timeout=3))
        await asyncio.sleep(0)  # it is sent first, so that the shorter one must move the timer
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.get("customers", "SG", "k", timeout=timedelta(milliseconds=50))
        assert time.monotonic() - start < 1
        assert not long.done()
        long.cancel()
        sites["sin"].works.set()


async def test_the_gateway_is_told_how_long_its_answer_is_waited_for():
    async with running() as sites, regiongate.connect(sites["sin"].address, timeout=2) as client:
        await client.put("customers", "SG", "k", {"spend": 1})
        assert 1500 < sites["sin"].world.asked[0].timeout_ms <= 2000


async def test_after_a_silent_attempt_another_gateway_of_the_idc_is_asked():
    async with running("sin2") as sites, regiongate.connect(sites["fra"].address, settings=QUICK) as client:
        for name in ("sin", "sin2"):
            await client.put("customers", "SG", "k", {"spend": 1})
            silent = "sin" if sites["sin"].streams else "sin2"
            sites[silent].works.clear()
            await client.put("customers", "SG", name, {"spend": 2}, timeout=5)
            assert sites[{"sin": "sin2", "sin2": "sin"}[silent]].streams
            sites[silent].works.set()


async def test_when_a_gateway_dies_its_calls_go_to_another_one_of_the_idc():
    async with running("sin2") as sites, regiongate.connect(sites["fra"].address) as client:
        await client.put("customers", "SG", "k", {"spend": 1})
        used, other = ("sin", "sin2") if sites["sin"].streams else ("sin2", "sin")
        await sites[used].stop()
        rows = await asyncio.gather(*(client.get("customers", "SG", "k") for _ in range(50)))
        assert {row.values["spend"] for row in rows} == {1}
        assert sites[other].streams == 1


async def test_when_no_gateway_of_the_owner_answers_home_is_asked_and_later_the_owner_again():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        sin, world = sites["sin"], sites["fra"].world
        await client.put("customers", "SG", "k", {"spend": 1})
        port = int(sin.address.rpartition(":")[2])
        await sin.stop()
        assert (await client.get("customers", "SG", "k")).values == {"spend": 1}
        assert world.asked[-1].idc == "fra"
        await sin.start(port)
        async with asyncio.timeout(20):
            while world.asked[-1].idc != "sin":
                await client.get("customers", "SG", "k")


async def test_when_the_home_gateway_dies_the_next_of_the_target_becomes_home():
    async with running() as sites:
        target = f"{sites['fra'].address},{sites['sha'].address}"
        async with regiongate.connect(target) as client:
            assert client.home_idc == "fra"
            changes = client.watch_routes()
            await anext(changes)
            await sites["fra"].stop()
            change = await asyncio.wait_for(anext(changes), 10)
            assert (change.is_snapshot, change.home_idc) == (True, "sha")
            sites["fra"].world.asked.clear()
            await client.put("customers", "SG", "k", {"spend": 1})
            assert [(a.idc, a.origin) for a in sites["fra"].world.asked] == [("sin", "sha")]


async def test_the_gateway_that_tells_the_routes_is_kept_while_it_does_though_it_has_left_them():
    async with running("fra2") as sites:
        world = sites["fra"].world
        async with regiongate.connect(sites["fra"].address) as client:
            changes = client.watch_routes()
            await anext(changes)
            await sites["fra"].stop()
            assert (
                await asyncio.wait_for(anext(changes), 10)
            ).home_idc == "fra"  # from the other one, which is no target
            sites["fra2"].is_announced = False
            world.tell()
            await asyncio.wait_for(anext(changes), 5)
            assert sites["fra2"].address in client._connections._endpoints
            world.tell()
            assert (await asyncio.wait_for(anext(changes), 5)).store_revision == world.revision


async def test_a_gateway_that_left_the_routes_gets_no_new_calls_and_its_stream_is_closed():
    async with running("sin2") as sites, regiongate.connect(sites["fra"].address) as client:
        world = sites["fra"].world
        await client.put("customers", "SG", "k", {"spend": 1})
        left, stays = ("sin", "sin2") if sites["sin"].streams else ("sin2", "sin")
        changes = client.watch_routes()
        await anext(changes)
        sites[left].is_announced = False
        world.tell()
        await asyncio.wait_for(anext(changes), 5)
        await client.get("customers", "SG", "k")
        assert sites[stays].streams == 1
        assert sites[left].address not in client._connections._endpoints


async def test_a_redirect_is_followed_to_the_owner_named_and_remembered():
    async with running() as sites, regiongate.connect(sites["sin"].address, direct=False) as client:
        world = sites["sin"].world
        sites["sin"].can_forward = False
        key = key_owned_by(world, "ams")
        for _ in range(3):
            await client.put("customers", "DE", key, {"spend": 1})
        assert [(a.idc, a.origin) for a in world.asked] == [("sin", ""), *[("ams", "sin")] * 3]


async def test_a_move_that_the_client_has_not_heard_of_costs_one_redirect_and_no_wait():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        world = sites["sin"].world
        sites["fra"].can_forward = False
        key = key_owned_by(world, "fra")
        await client.put("customers", "DE", key, {"spend": 1})
        world.move("DE", shard_of(key, SHARDS), "ams", tell=False)
        await client.put("customers", "DE", key, {"spend": 2})
        await client.put("customers", "DE", key, {"spend": 3})
        assert [a.idc for a in world.asked] == ["fra", "fra", "ams", "ams"]


async def test_gateways_that_name_each_other_are_not_asked_for_ever():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        world = sites["sin"].world
        for idc, other in (("fra", "ams"), ("ams", "fra")):
            error = NotOwnedHere("elsewhere", owner_idc=other, endpoints=(sites[other].address,))
            sites[idc].failures.extend([error] * 1000)
        with pytest.raises(NotOwnedHere):
            await client.get("customers", "DE", "k", timeout=0.5)
        assert len(world.asked) < 30


async def test_a_client_takes_no_more_calls_than_its_limit():
    settings = ClientSettings(max_in_flight=10)
    async with running() as sites, regiongate.connect(sites["sin"].address, settings=settings) as client:
        sites["sin"].works.clear()
        calls = [asyncio.create_task(client.get("customers", "SG", "k", timeout=5)) for _ in range(15)]
        done, waiting = await asyncio.wait(calls, timeout=0.2)
        assert len(waiting) == 10
        assert Counter(type(call.exception()) for call in done) == {LimitReached: 5}
        for call in waiting:
            call.cancel()
        sites["sin"].works.set()


async def test_closing_the_client_ends_the_calls_that_wait_and_those_that_come_later():
    async with running() as sites:
        async with regiongate.connect(sites["sin"].address) as client:
            sites["sin"].works.clear()
            waiting = [
                asyncio.create_task(client.get("customers", "SG", "k")),
                asyncio.create_task(client.list_page("customers", "SG")),
                asyncio.create_task(client.batch_get("customers", [("SG", "k")])),
            ]
            await sites["sin"].world.wait_asked(2)  # the two unary calls
        sites["sin"].works.set()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert [str(outcome) for outcome in (*outcomes[:2], outcomes[2][0])] == ["the client is closed"] * 3
        with pytest.raises(RegiongateError, match="closed"):
            await client.get("customers", "SG", "k")


async def test_a_call_that_a_draining_gateway_has_taken_is_answered_by_it():
    async with running("sin2") as sites, regiongate.connect(sites["fra"].address) as client:
        world = sites["fra"].world
        for name in ("sin", "sin2"):
            sites[name].works.clear()
        write = asyncio.create_task(client.batch_write("customers", [regiongate.Put("SG", "k", {"spend": 1})]))
        await world.wait_asked(1)
        changes = client.watch_routes()
        await anext(changes)
        taken = world.asked[0].idc
        for name in ("sin", "sin2"):
            sites[name].is_announced = False
        world.tell()
        await asyncio.wait_for(anext(changes), 5)
        for name in ("sin", "sin2"):
            sites[name].works.set()
        assert isinstance((await write)[0], regiongate.Receipt)
        assert [a.idc for a in world.asked] == [taken]


async def test_a_batch_repeats_the_whole_shard_that_failed_and_nothing_else_law_l3():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        world = sites["sin"].world
        writes = [regiongate.Put("SG", str(number), {"spend": number}) for number in range(40)]
        sites["sin"].failures.append(ShardUnavailable("opening"))
        results = await client.batch_write("customers", writes)
        assert [type(result) for result in results] == [regiongate.Receipt] * 40
        first = shard_of("0", SHARDS)
        of_shard = sum(shard_of(write.key, SHARDS) == first for write in writes)
        assert world.messages["sin.rows"] == 40 + of_shard
        assert world.versions == 40
        assert len({a.request_id for a in world.asked}) == 1


async def test_of_a_batch_of_reads_only_what_failed_is_asked_for_again():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        await client.put("customers", "SG", "k", {"spend": 1})
        sites["sin"].failures.append(LimitReached("the answer is full", limit="answer_bytes"))
        rows = await client.batch_get("customers", [("SG", "k")] * 10)
        assert [type(row) for row in rows] == [regiongate.Row] * 10
        assert sites["sin"].world.messages["sin.keys"] == 11


async def test_a_gateway_that_is_leaving_is_left_at_once():
    async with running("sin2") as sites, regiongate.connect(sites["fra"].address) as client:
        for name in ("sin", "sin2"):
            sites[name].failures.append(Unavailable("this gateway is stopping"))
        start = time.monotonic()
        await client.put("customers", "SG", "k", {"spend": 1})
        assert {asked.idc for asked in sites["fra"].world.asked} >= {"sin"}
        assert len(sites["fra"].world.asked) == 3
        assert time.monotonic() - start < 1


async def test_a_batch_whose_gateway_dies_is_finished_by_another_one():
    async with running("sin2") as sites, regiongate.connect(sites["fra"].address) as client:
        await sites["sin"].stop()
        for number in range(3):
            writes = [regiongate.Put("SG", f"{number}-{n}", {"spend": n}) for n in range(10)]
            results = await client.batch_write("customers", writes)
            assert all(isinstance(result, regiongate.Receipt) for result in results)


async def test_a_batch_that_runs_out_of_time_tells_for_each_row():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        sites["sin"].failures.extend(DatabaseUnavailable("away") for _ in range(10_000))
        results = await client.batch_get("customers", [("SG", "a"), ("DE", "b")], timeout=0.3)
        assert [type(result).__name__ for result in results] == ["DatabaseUnavailable", "RowNotFound"]


async def test_a_listing_is_tried_again_and_follows_redirects():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        await client.put("customers", "SG", "k", {"spend": 1})
        redirect = NotOwnedHere("elsewhere", owner_idc="fra", endpoints=(sites["fra"].address,))
        sites["sin"].failures.extend([ShardUnavailable("opening"), redirect])
        page = await client.list_page("customers", "SG")
        assert [row.key for row in page.rows] == ["k"]
        listed = [(a.idc, a.origin) for a in sites["sin"].world.asked if a.action == "list"]
        assert listed == [("sin", ""), ("sin", ""), ("fra", "sin")]
