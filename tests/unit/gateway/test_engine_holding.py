"""Operations that meet a shard on the move, or not open yet: held, woken, bounded, and done once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from policy.errors import (
    NotOwnedHere,
    RowNotFound,
    ShardUnavailable,
)
from policy.model import Phase
from policy.records import ShardRecord
from policy.table import RoutingTable
from rowstore.model import FenceMode
from tests.support import routing
from tests.support.engine_side import LAW, TABLE, Gateway, get, put


def moved(table: RoutingTable, owner: str, epoch: int, phase: Phase = Phase.SERVING) -> RoutingTable:
    shards = [("DE", shard, ShardRecord(owner, epoch, phase, 1)) for shard in range(4)]
    return table.patch(store_revision=table.store_revision + 1, shards=shards)


async def test_an_operation_that_meets_a_newer_epoch_waits_for_the_newer_table():
    """Law L4: nothing was written at the old epoch."""
    gateway = Gateway()
    for shard in range(4):
        gateway.rows.set_fence("DE", shard, epoch=2)
    held = asyncio.create_task(gateway.do(put("k"), get("k")))
    await gateway.view.waiting.wait()
    gateway.view.show(moved(TABLE, "fra", 2))
    written, _ = await held
    assert written.receipt
    assert written.receipt.version == 1


@pytest.mark.parametrize("first", [Phase.OPENING, None], ids=["opening", "unassigned"])
async def test_an_operation_on_a_shard_that_is_not_open_yet_is_held(first):
    table = RoutingTable.build(LAW, routing.records(LAW, {"DE": "fra"}, phase=first) if first else (), 10)
    gateway = Gateway(table=table)
    held = asyncio.create_task(gateway.do(put("k")))
    await gateway.view.waiting.wait()
    assert not gateway.rows.statements
    gateway.view.show(moved(table, "fra", 1))
    assert (await held)[0].receipt


async def test_a_fence_that_opens_again_without_any_change_of_the_table_is_found():
    """A move that was called off leaves owner and epoch as they were."""
    gateway = Gateway()
    for shard in range(4):
        gateway.rows.set_fence("DE", shard, mode=FenceMode.DRAINING)
    held = asyncio.create_task(gateway.do(put("k")))
    await gateway.view.waiting.wait()
    for shard in range(4):
        gateway.rows.set_fence("DE", shard)
    assert (await held)[0].receipt


def in_phase(table: RoutingTable, phase: Phase, owner: str = "fra", epoch: int = 1) -> RoutingTable:
    return moved(table, owner, epoch, phase)


async def test_a_newer_table_that_came_while_the_database_said_no_is_looked_at_at_once():
    """The stall of a writer is that of the move: no pause is added to it."""
    gateway = Gateway()
    for shard in range(4):
        gateway.rows.set_fence("DE", shard, epoch=2)
    gateway.rows.pause()
    writing = asyncio.create_task(gateway.do(put("k")))
    await gateway.rows.wait_begun(1)
    gateway.view.show(moved(TABLE, "fra", 2))
    gateway.view.never_sleeps = True
    gateway.rows.resume()
    assert (await writing)[0].receipt
    assert len(gateway.rows.statements) == 2


async def test_a_write_is_held_while_its_shard_drains_and_a_read_is_not():
    gateway = Gateway(table=in_phase(TABLE, Phase.DRAINING))
    gateway.rows.set_fences(TABLE, "fra", mode=FenceMode.DRAINING)
    assert isinstance((await gateway.do(get("k")))[0].error, RowNotFound)
    held = asyncio.create_task(gateway.do(put("k")))
    await gateway.view.waiting.wait()
    assert [kind for kind, _ in gateway.rows.statements] == ["read"]
    gateway.rows.set_fences(TABLE, "fra")
    gateway.view.show(in_phase(gateway.view.table, Phase.PURGING))
    assert (await held)[0].receipt


async def test_what_only_a_newer_table_lets_go_on_goes_on_with_it_and_not_by_looking_again():
    gateway = Gateway(table=in_phase(TABLE, Phase.CLOSING))
    gateway.view.never_sleeps = True
    held = asyncio.create_task(gateway.do(put("k"), get("k"), timeout=60))
    await gateway.view.waiting.wait()
    assert not gateway.rows.statements
    gateway.view.show(in_phase(gateway.view.table, Phase.PURGING))
    assert (await held)[0].receipt


async def test_a_shard_that_is_called_back_is_served_a_few_milliseconds_after_its_fence_has_opened():
    """The fence opens after the record says that the move is called off, and nothing tells the gateways."""
    gateway = Gateway(table=in_phase(TABLE, Phase.ABORTING))
    gateway.rows.set_fences(TABLE, "fra", mode=FenceMode.CLOSED)
    held = asyncio.create_task(gateway.do(put("k")))
    await gateway.rows.wait_begun(2)
    gateway.rows.set_fences(TABLE, "fra")
    begun = len(gateway.rows.statements)
    assert (await held)[0].receipt
    assert len(gateway.rows.statements) == begun + 1


async def test_what_a_peer_has_forwarded_comes_back_at_once_when_the_database_has_let_the_shard_go():
    """The ingress may know the new owner already; here it would wait for nothing."""
    gateway = Gateway()
    gateway.rows.set_fences(TABLE, "fra", mode=FenceMode.CLOSED)
    found = await gateway.do(put("k"), get("k"), ingress_idc="ams")
    assert all(isinstance(outcome.error, NotOwnedHere) for outcome in found)
    assert not gateway.view.waiting.is_set()


async def test_what_a_peer_has_forwarded_comes_back_with_the_switch():
    gateway = Gateway(table=in_phase(TABLE, Phase.DRAINING))
    held = asyncio.create_task(gateway.do(put("k"), ingress_idc="ams"))
    await gateway.view.waiting.wait()
    gateway.view.show(in_phase(gateway.view.table, Phase.OPENING, "lon", 2))
    (found,) = await held
    assert isinstance(found.error, NotOwnedHere)
    assert found.error.owner_idc == "lon"


async def test_what_a_peer_has_forwarded_waits_for_a_shard_that_is_called_back():
    gateway = Gateway(table=in_phase(TABLE, Phase.ABORTING))
    gateway.rows.set_fences(TABLE, "fra", mode=FenceMode.CLOSED)
    held = asyncio.create_task(gateway.do(put("k"), ingress_idc="ams"))
    await gateway.view.waiting.wait()
    gateway.rows.set_fences(TABLE, "fra")
    assert (await held)[0].receipt


async def test_a_bare_write_that_meets_every_phase_of_a_move_is_done_once():
    """Law L4: what the fence has refused was not done, and what was done is not repeated."""
    gateway = Gateway()
    phases = [
        Phase.COPYING,
        Phase.DRAINING,
        Phase.ABORTING,
        Phase.PURGING,
        Phase.COPYING,
        Phase.DRAINING,
        Phase.CLOSING,
    ]
    phases += [Phase.ABORTING, Phase.PURGING, Phase.SERVING]
    modes = {Phase.DRAINING: FenceMode.DRAINING, Phase.CLOSING: FenceMode.CLOSED, Phase.ABORTING: FenceMode.CLOSED}
    writing = [asyncio.create_task(gateway.do(put(f"k{number}"), timeout=60)) for number in range(5)]
    for number, phase in enumerate(phases):
        # The fence before the table, and the other way round.
        if number % 2:
            gateway.view.show(in_phase(gateway.view.table, phase))
        gateway.rows.set_fences(TABLE, "fra", mode=modes.get(phase, FenceMode.SERVING))
        writing += [asyncio.create_task(gateway.do(put(f"k{phase}{n}"), timeout=60)) for n in range(5)]
        await asyncio.sleep(0)
        gateway.view.show(in_phase(gateway.view.table, phase))
        await asyncio.sleep(0)
    found = await asyncio.gather(*writing)
    assert all(outcome.receipt for (outcome,) in found)
    assert sum(fence.last_seq for fence in gateway.rows.fences.values()) == len(writing), "each took one sequence"


async def test_a_hold_is_bounded_in_time():
    gateway = Gateway(hold_timeout=timedelta(seconds=0.06))
    gateway.rows.set_fence("DE", 0, mode=FenceMode.CLOSED)
    found = await gateway.do(*(put(f"k{number}") for number in range(40)))
    failed = [outcome for outcome in found if outcome.error]
    assert 0 < len(failed) < 40
    assert all(isinstance(outcome.error, ShardUnavailable) for outcome in failed)
    assert all(outcome.error.retry_after > timedelta() for outcome in failed)


async def test_a_hold_is_bounded_in_number():
    gateway = Gateway(max_held=3)
    for shard in range(4):
        gateway.rows.set_fence("DE", shard, mode=FenceMode.CLOSED)
    held = asyncio.create_task(gateway.do(get("a"), get("b")))
    await gateway.view.waiting.wait()
    (refused, also) = await gateway.do(get("c"), get("d"))
    for outcome in (refused, also):
        assert isinstance(outcome.error, ShardUnavailable)
        assert "too many" in str(outcome.error)
    held.cancel()
    await asyncio.wait({held})
    gateway.view.waiting.clear()
    held = asyncio.create_task(gateway.do(get("a"), get("b"), get("c")))
    await gateway.view.waiting.wait()
    held.cancel()
