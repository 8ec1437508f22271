"""Forwarding between engines over real gRPC streams."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from gateway import metrics
from gateway.branches import PEER
from gateway.limits import EngineSettings
from gateway.operations import Action, RowOperation
from policy.errors import (
    AccessDenied,
    DeadlineExceeded,
    NotOwnedHere,
    PeerUnreachable,
    RowNotFound,
    ShardUnavailable,
    VersionConflict,
)
from policy.model import Phase
from policy.records import ShardRecord
from rowstore.model import FenceMode
from tests.support import routing
from tests.support.gateways import until
from tests.support.memory_rows import MemoryRows
from tests.support.peer_gateway import Gateways, running

LAW = routing.policy()
TABLE = routing.table(LAW)
CUSTOMERS = LAW.datasets["customers"]
COUNTERS = LAW.datasets["counters"]
IDCS = ("sha", "fra", "ams", "sin", "lon")


def get(key: str, region_code: str = "FR", columns=None, **fields) -> RowOperation:
    return RowOperation(Action.GET, CUSTOMERS, region_code, key, columns, **fields)


def put(key: str, name: str = "n", region_code: str = "FR", **fields) -> RowOperation:
    return RowOperation(Action.PUT, CUSTOMERS, region_code, key, values={"name": name, "spend": 1}, **fields)


def delete(key: str, region_code: str = "FR", **fields) -> RowOperation:
    return RowOperation(Action.DELETE, CUSTOMERS, region_code, key, **fields)


@pytest.fixture
def rows():
    databases = {idc: MemoryRows() for idc in IDCS}
    for idc, database in databases.items():
        database.open_all(TABLE, idc)
    return databases


async def test_rows_of_another_idc_are_written_and_read_there(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, ams):
        written, conditional = await fra.do(put("k", "Ada", request_id="r1"), put("new", if_version=0))
        assert written.receipt
        assert written.receipt.update_time.tzinfo
        assert conditional.receipt
        found, missing, conflict = await fra.do(get("k"), get("no"), put("k", if_version=99))
        assert found.row.columns["name"].string_value == "Ada"
        assert found.row.version == written.receipt.version
        assert (found.decision.rule, found.owner_idc) == ("europe", "ams")
        assert isinstance(missing.error, RowNotFound)
        assert isinstance(conflict.error, VersionConflict)
        assert conflict.error.current == written.receipt.version
        (again,) = await fra.do(put("k", "Ada", request_id="r1"))
        assert again.receipt.version == written.receipt.version
        await fra.do(delete("k"))
        assert isinstance((await ams.do(get("k")))[0].error, RowNotFound)
        assert not rows["fra"].statements


async def test_int64_keys_and_columns_that_were_not_asked_for(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, _):
        await fra.do(RowOperation(Action.PUT, COUNTERS, "FR", -7, values={"n": None}), put("k"))
        counter, named = await fra.do(
            RowOperation(Action.GET, COUNTERS, "FR", -7), get("k", columns=frozenset({"spend"}))
        )
        assert counter.row.key.int64_key == -7
        assert counter.row.columns["n"].HasField("null_value")
        assert set(named.row.columns) == {"spend"}


async def test_the_owner_judges_by_where_the_call_has_entered(rows):
    """Law L1: withheld columns are dropped at the owner; the entry is what asks."""
    async with running(TABLE, rows, "sin-a", "fra-a") as (sin, fra):
        await fra.do(put("k", region_code="DE"))
        denied, found = (await sin.do(get("k", "DE")))[0], (await sin.do(get("k", "DE"), purpose="support"))[0]
        assert isinstance(denied.error, AccessDenied)
        assert set(found.row.columns) == {"spend"}
        assert found.decision.rule == "eu-support"
        assert (found.decision.withheld, found.decision.asking_jurisdiction) == ({"name"}, "SG")
        # The ingress may be mistaken about the law; the owner is asked anyway.
        sin.view.show(routing.table(routing.policy(routing.POLICY.replace("purposes: [support]", "purposes: [any]"))))
        assert isinstance((await sin.do(get("k", "DE"), purpose="other"))[0].error, AccessDenied)


async def test_a_stated_origin_reaches_the_owner(rows):
    async with running(TABLE, rows, "ams-a", "fra-a") as (ams, fra):
        await fra.do(put("k", region_code="DE"))
        (found,) = await ams.do(get("k", "DE"), origin_idc="sin", purpose="support")
        assert set(found.row.columns) == {"spend"}


async def test_a_row_that_a_newer_law_withholds_loses_it_at_the_ingress_too(rows):
    """Law L6: the owner has not heard of the new law yet."""
    hiding = routing.policy(routing.POLICY.replace("spend: {type: int64}", "spend: {type: int64, class: personal}"), 2)
    async with running(TABLE, rows, "sin-a", "fra-a") as (sin, fra):
        await fra.do(put("k", region_code="DE"))
        rows["fra"].pause()
        crossing = asyncio.create_task(sin.do(get("k", "DE"), purpose="support"))
        await rows["fra"].wait_begun(2)
        sin.view.patch(store_revision=11, law=hiding)
        rows["fra"].resume()
        assert not (await crossing)[0].row.columns


async def test_an_answer_that_a_newer_law_forbids_does_not_leave_the_ingress(rows):
    """Law L6."""
    stricter = routing.policy(routing.POLICY.replace("purposes: [support]", "purposes: [legal]"), 2)
    async with running(TABLE, rows, "sin-a", "fra-a") as (sin, fra):
        await fra.do(put("k", region_code="DE"))
        rows["fra"].pause()
        crossing = asyncio.create_task(sin.do(get("k", "DE"), purpose="support"))
        await rows["fra"].wait_begun(2)
        sin.view.patch(store_revision=11, law=stricter)
        rows["fra"].resume()
        assert isinstance((await crossing)[0].error, AccessDenied)


async def test_concurrent_operations_share_messages_and_statements(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, _):
        await fra.do(get("warm"))
        before = _messages()
        found = await asyncio.gather(*(fra.do(put(f"k{number}")) for number in range(200)))
        assert all(outcome.receipt for (outcome,) in found)
        assert _messages() - before < 50
        assert len(rows["ams"].statements) < 50


def _messages() -> float:
    return next(
        sample.value
        for metric in metrics.MESSAGE_OPERATIONS.collect()
        for sample in metric.samples
        if sample.name.endswith("_count")
    )


async def test_an_operation_is_never_forwarded_twice(rows):
    """The peer's table says that a third IDC owns the shard: it names it, and the ingress waits for its own table."""
    settings = EngineSettings(hold_timeout=timedelta(seconds=0.06))
    async with running(TABLE, rows, "fra-a", "ams-a", "lon-a", settings=settings) as (fra, ams, lon):
        ams.view.patch(store_revision=11, shards=_moved("lon"))
        for shard in range(4):
            rows["lon"].set_fence("FR", shard, epoch=2)
        (held,) = await fra.do(put("k"))
        assert isinstance(held.error, ShardUnavailable)
        assert not rows["lon"].statements
        (named,) = await ams.do(put("k"), ingress_idc="fra")
        assert isinstance(named.error, NotOwnedHere)
        assert named.error.owner_idc == "lon"
        waiting = asyncio.create_task(fra.do(put("k"), timeout=5))
        fra.view.waiting.clear()
        await fra.view.waiting.wait()
        fra.view.patch(store_revision=11, shards=_moved("lon"))
        lon.view.patch(store_revision=11, shards=_moved("lon"))
        assert (await waiting)[0].receipt


def _moved(owner: str, epoch: int = 2, phase: Phase = Phase.SERVING):
    return [("FR", shard, ShardRecord(owner, epoch, phase, 1)) for shard in range(4)]


async def test_a_peer_that_has_not_heard_of_the_switch_yet_is_asked_again_within_milliseconds(rows):
    """Law L4: a write without a request_id too, since the peer has done nothing."""
    async with running(TABLE, rows, "fra-a", "ams-a", "lon-a") as (fra, _, lon):
        await fra.do(get("warm", "DE"))
        _switch(rows, "lon")
        fra.view.patch(store_revision=11, shards=_moved("lon", phase=Phase.PURGING))
        begun = _counted(metrics.HOLDS.labels(PEER))
        writing = asyncio.create_task(fra.do(put("k")))
        await until(lambda: _counted(metrics.HOLDS.labels(PEER)) >= begun + 3)
        start = asyncio.get_running_loop().time()
        lon.view.patch(store_revision=11, shards=_moved("lon", phase=Phase.PURGING))
        (found,) = await writing
        assert found.receipt
        assert asyncio.get_running_loop().time() - start < 0.1
        assert found.receipt.version == 1, "done once"


async def test_a_write_held_at_the_owner_goes_on_at_the_new_owner_as_soon_as_the_tables_say_so(rows):
    """Laws L3 and L4: the ingress did not know that the shard drains, and the owner had taken the write in."""
    async with running(TABLE, rows, "fra-a", "ams-a", "lon-a") as all_three:
        fra, ams, lon = all_three
        await fra.do(put("k", "before"))
        ams.view.patch(store_revision=11, shards=_moved("ams", 1, Phase.DRAINING))
        writing = asyncio.create_task(fra.do(put("k", "after")))
        await ams.view.waiting.wait()
        assert [kind for kind, _ in rows["ams"].statements] == ["write"]
        fra.view.never_sleeps = True
        for revision, (owner, epoch, phase) in enumerate(
            [("ams", 1, Phase.CLOSING), ("lon", 2, Phase.OPENING), ("lon", 2, Phase.PURGING)], 12
        ):
            if phase is Phase.OPENING:
                _switch(rows, "lon")
            for gateway in all_three:
                gateway.view.patch(store_revision=revision, shards=_moved(owner, epoch, phase))
        (found,) = await writing
        assert found.receipt
        assert found.owner_idc == "lon"
        assert [kind for kind, _ in rows["ams"].statements] == ["write"]
        assert (await lon.do(get("k")))[0].row.values["name"] == "after"


async def test_a_write_is_held_where_it_has_entered_while_its_shard_drains_and_a_read_is_forwarded(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, _):
        await fra.do(put("k"))
        fra.view.patch(store_revision=11, shards=_moved("ams", 1, Phase.DRAINING))
        writing = asyncio.create_task(fra.do(put("k")))
        await fra.view.waiting.wait()
        assert (await fra.do(get("k")))[0].row
        assert [kind for kind, _ in rows["ams"].statements] == ["write", "read"]
        fra.view.never_sleeps = True
        fra.view.patch(store_revision=12, shards=_moved("ams", 1, Phase.PURGING))
        assert (await writing)[0].receipt


def _switch(rows, owner: str) -> None:
    """The databases after the switch from ams."""
    rows["ams"].set_fences(TABLE, "ams", mode=FenceMode.CLOSED)
    for shard in range(4):
        rows[owner].set_fence("FR", shard, epoch=2)
        rows["ams"].hand_over(rows[owner], "FR", shard, ())
    rows["ams"].hand_over(rows[owner], "FR", 0, ["k"])


def _counted(counter) -> float:
    return counter._value.get()


async def test_where_no_gateway_lives_the_idc_is_unreachable_at_once(rows):
    async with running(TABLE, rows, "fra-a") as (fra,):
        (found,) = await fra.do(get("k"))
        assert isinstance(found.error, PeerUnreachable)
        assert found.error.retry_after > timedelta()


async def test_a_gateway_that_cannot_be_reached_is_passed_over_for_the_other_one(rows):
    async with running(TABLE, rows, "fra-a", "ams-a", "ams-b") as (fra, dead, _):
        await dead.die()
        found = await asyncio.gather(*(fra.do(put(f"k{number}")) for number in range(20)))
        assert all(outcome.receipt for (outcome,) in found), (
            "nothing was sent to the dead one, so all could be sent again"
        )


async def test_the_only_gateway_that_cannot_be_reached_is_said_to_be_and_comes_back(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, ams):
        assert isinstance((await fra.do(get("k")))[0].error, RowNotFound)
        await ams.die()
        assert isinstance((await fra.do(get("k"), timeout=5))[0].error, PeerUnreachable)
        await ams.listen()
        deadline = asyncio.get_running_loop().time() + 10
        while isinstance((found := (await fra.do(get("k")))[0]).error, PeerUnreachable):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        assert isinstance(found.error, RowNotFound)


async def test_what_can_be_repeated_is_sent_to_the_other_gateway_when_a_stream_breaks(rows):
    """Law L3 and L4: a write with a request_id is written once, however often it is sent."""
    async with running(TABLE, rows, "fra-a", "ams-a", "ams-b") as (fra, first, _):
        await fra.do(put("k", "before"))
        rows["ams"].pause()
        begun = len(rows["ams"].statements)
        reading = asyncio.create_task(fra.do(get("k"), timeout=10))
        await rows["ams"].wait_begun(begun + 1)
        writing = asyncio.create_task(fra.do(put("k", "after", request_id="r1"), timeout=10))
        await rows["ams"].wait_begun(begun + 2)
        await first.die()
        rows["ams"].resume()
        (read,), (written,) = await reading, await writing
        assert read.row
        assert written.receipt
        (again,) = await fra.do(put("k", "after", request_id="r1"))
        assert again.receipt.version == written.receipt.version


async def test_a_bare_write_that_was_sent_when_the_stream_broke_is_not_repeated(rows):
    """Law L4: repeating it could overwrite a later write."""
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, ams):
        await fra.do(get("warm"))
        rows["ams"].pause()
        writing = asyncio.create_task(fra.do(put("k"), timeout=10))
        await rows["ams"].wait_begun(2)
        await ams.die()
        await ams.listen()
        rows["ams"].resume()
        (found,) = await writing
        assert isinstance(found.error, PeerUnreachable)
        assert "may have been done" in str(found.error)
        assert [kind for kind, _ in rows["ams"].statements].count("write") == 1


async def test_a_gateway_whose_lease_has_run_out_is_given_up_with_what_it_has_not_answered(rows):
    """It may be paused: its connection lives, and nothing comes."""
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, ams):
        await fra.do(get("warm"))
        rows["ams"].pause()
        reading = asyncio.create_task(fra.do(get("k"), timeout=30))
        await rows["ams"].wait_begun(2)
        gateways = Gateways()
        gateways.all = [fra, ams]
        gateways.publish(ams)
        assert isinstance((await reading)[0].error, PeerUnreachable)


async def test_a_deadline_passes_while_the_owner_does_not_answer(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, _):
        rows["ams"].pause()
        (found,) = await fra.do(get("k"), timeout=0.1)
        assert isinstance(found.error, DeadlineExceeded)
        rows["ams"].resume()


async def test_a_held_operation_at_the_owner_delays_no_other_one(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, _):
        shard = TABLE.resolve("FR", "held").shard
        rows["ams"].set_fence("FR", shard, mode=FenceMode.DRAINING)
        free = next(str(n) for n in range(100) if TABLE.resolve("FR", str(n)).shard != shard)
        held = asyncio.create_task(fra.do(put("held")))
        assert (await fra.do(put(free)))[0].receipt
        assert not held.done()
        rows["ams"].set_fence("FR", shard)
        assert (await held)[0].receipt


async def test_closing_ends_what_waits(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, _):
        rows["ams"].pause()
        reading = asyncio.create_task(fra.do(get("k")))
        await rows["ams"].wait_begun(1)
        await fra.peers.close()
        assert isinstance((await reading)[0].error, PeerUnreachable)
        rows["ams"].resume()


async def test_a_batch_larger_than_a_message_is_carried_whole(rows):
    async with running(TABLE, rows, "fra-a", "ams-a") as (fra, _):
        big = "x" * 500_000
        found = await fra.do(*(put(f"k{number}", big, request_id="r") for number in range(10)))
        assert all(outcome.receipt for outcome in found)
        read = await fra.do(*(get(f"k{number}") for number in range(10)))
        assert all(len(outcome.row.columns["name"].string_value) == 500_000 for outcome in read)
