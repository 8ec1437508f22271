"""One row's way to another RegionCode, step by step, on the real statements."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from policy.errors import DatabaseUnavailable
from policy.model import Column, ColumnType, Dataset
from rowstore.model import Arriving, FenceMiss, FenceMode, Missing, ShardEpoch, StoredRow, VersionMismatch, Written
from rowstore.row_moves import Arrived, Awaited, DepartureState, NewHome, Occupied, OldHome
from rowstore.schema import ensure_datasets
from tests.support.row_databases import CUSTOMERS, RowDatabase, put
from tests.support.row_move_homes import EVERY_TYPE, NEW, OLD, Homes, plan

if TYPE_CHECKING:
    from rowstore.model import RowWrite

ADA = {"name": "Ada", "spend": 12}


@pytest.fixture
async def homes(idc: RowDatabase) -> Homes:
    """Both homes in one database, and the same shard number: the least that keeps them apart."""
    await idc.store.fences.open([ShardEpoch(NEW, shard, 1) for shard in range(4)])
    made = Homes(CUSTOMERS, idc.store, await idc.another_gateway(), "k")
    await write(made, put("k", ADA))
    return made


async def write(homes: Homes, row: RowWrite):
    (outcome,) = await homes.old.write(homes.dataset, [row])
    return outcome


async def test_a_row_is_live_under_its_new_name_and_gone_under_its_old_one(homes: Homes) -> None:
    settled = await homes.move(plan())
    old, new = await homes.read()
    assert old == Missing()
    assert isinstance(new, StoredRow)
    assert (new.values, new.version, new.update_time) == (ADA, settled.version, settled.update_time)
    assert await homes.departure() is None
    assert await homes.new.moves.find(CUSTOMERS, homes.coming, "other") == NewHome(settled.version, None, None)


async def test_after_each_step_at_most_one_row_is_seen_and_never_none(homes: Homes) -> None:
    move = plan()
    row = await homes.prepare(move)
    assert [type(side) for side in await homes.read()] == [StoredRow, Missing]
    assert await homes.arrive(move, row) == Arrived()
    # Neither may be said of the new name: that it is there, or that it is not.
    assert [type(side) for side in await homes.read()] == [StoredRow, Arriving]
    assert await homes.depart(move) is None
    assert [type(side) for side in await homes.read()] == [Missing, Arriving]
    await homes.settle(move)
    assert [type(side) for side in await homes.read()] == [Missing, StoredRow]


async def test_every_step_may_be_done_again(homes: Homes) -> None:
    move = plan("r-1")
    row = await homes.prepare(move)
    assert await homes.arrive(move, row) == Arrived()
    assert await homes.arrive(move, row) == Arrived()
    assert await homes.depart(move) is None
    assert await homes.depart(move) is None
    first = await homes.settle(move)
    assert isinstance(first, Written)
    assert await homes.settle(move) is None
    again = await homes.arrive(move, row)
    assert isinstance(again, Written)
    assert again[:2] == first[:2]
    assert await homes.cancel(move) is None
    await homes.forget(move)
    await homes.forget(move)
    assert [type(side) for side in await homes.read()] == [Missing, StoredRow]


async def test_values_of_every_type_arrive_as_they_were(idc: RowDatabase) -> None:
    values = {
        "string_column": "ü'\\{,}\"\n NULL",
        "int64_column": -(2**63),
        "double_column": 0.1 + 0.2,
        "bool_column": False,
        "bytes_column": bytes(range(256)),
        "timestamp_column": datetime(1, 1, 1, 0, 0, 0, 1, UTC),
        "decimal_column": Decimal("-1234567890.12345678901234567890100"),
        "json_column": '{"b" : [1,  2.50], "a":null, "a": "\\u00fc"}',
    }
    await ensure_datasets(idc.database, [EVERY_TYPE])
    await idc.store.fences.open([ShardEpoch(NEW, 0, 1)])
    doubles = [math.nan, math.inf, -0.0, 5e-324, 1.7976931348623157e308, None]
    for key, double in enumerate([values["double_column"], *doubles]):
        homes = Homes(EVERY_TYPE, idc.store, idc.store, key)
        row = values | {"double_column": double} if key else values
        await idc.store.write(EVERY_TYPE, [put(key, row if key < 6 else {})])
        await homes.move(plan())
        _, new = await homes.read()
        assert isinstance(new, StoredRow)
        assert repr(new.values) == repr(row if key < 6 else dict.fromkeys(values))


async def test_a_row_that_does_not_exist_or_has_another_version_does_not_leave(homes: Homes) -> None:
    moves = homes.old.moves
    missing = Homes(CUSTOMERS, homes.old, homes.new, "nobody")
    assert await moves.prepare(CUSTOMERS, missing.leaving, None, plan()) == OldHome(0, None)
    (row,) = await homes.old.read(CUSTOMERS, [homes.leaving])
    assert isinstance(row, StoredRow)
    assert await moves.prepare(CUSTOMERS, homes.leaving, row.version + 1, plan()) == OldHome(row.version, None)
    assert isinstance(await moves.prepare(CUSTOMERS, homes.leaving, row.version, plan()), StoredRow)


async def test_a_row_leaves_once_at_a_time(homes: Homes) -> None:
    first = plan("first")
    await homes.prepare(first)
    found = await homes.old.moves.prepare(CUSTOMERS, homes.leaving, None, plan("second"))
    assert isinstance(found, OldHome)
    assert found.departure is not None
    assert (found.departure.plan, found.departure.state) == (first, DepartureState.PREPARED)


async def test_a_row_that_was_changed_after_it_was_prepared_does_not_leave(homes: Homes) -> None:
    move = plan()
    await homes.arrive(move, await homes.prepare(move))
    changed = await write(homes, put("k", {"name": "Grace"}))
    found = await homes.depart(move)
    assert isinstance(found, OldHome)
    assert found.live_version == changed.version
    await homes.sweep()
    old, new = await homes.read()
    assert isinstance(old, StoredRow)
    assert old.values == {"name": "Grace", "spend": None}
    assert new == Missing()


async def test_a_conductor_that_wakes_late_does_not_let_a_row_go_whose_move_was_called_off(homes: Homes) -> None:
    move = plan()
    await homes.arrive(move, await homes.prepare(move))
    assert await homes.old.moves.void(CUSTOMERS, homes.leaving, move.move_id) is DepartureState.VOID
    found = await homes.depart(move)
    assert isinstance(found, OldHome)
    assert found.departure is not None
    assert found.departure.state is DepartureState.VOID
    await homes.cancel(move)
    await homes.forget(move)
    assert isinstance(await homes.depart(move), OldHome)
    assert [type(side) for side in await homes.read()] == [StoredRow, Missing]


async def test_a_change_that_waits_for_the_fence_beside_the_move_is_judged_as_it_is_then(
    homes: Homes, idc: RowDatabase
) -> None:
    move = plan()
    await homes.arrive(move, await homes.prepare(move))
    async with idc.holding_fence() as holder:
        leaving = asyncio.create_task(homes.depart(move))
        await idc.until_waiting(1)
        # As a writer does that had the fence first: the statement's snapshot does not know of it.
        await holder.execute("UPDATE shard_fences SET last_seq = 77 WHERE region_code = 'DE' AND shard = 0")
        await holder.execute("UPDATE rows_customers SET seq = 77, spend = 99 WHERE region_code = 'DE' AND key = 'k'")
    found = await leaving
    assert isinstance(found, OldHome)
    assert found.live_version == 77


async def test_the_sequence_of_a_departure_follows_a_writer_that_had_the_fence_first(
    homes: Homes, idc: RowDatabase
) -> None:
    move = plan()
    await homes.arrive(move, await homes.prepare(move))
    async with idc.holding_fence() as holder:
        leaving = asyncio.create_task(homes.depart(move))
        await idc.until_waiting(1)
        await holder.execute("UPDATE shard_fences SET last_seq = 77 WHERE region_code = 'DE' AND shard = 0")
    assert await leaving is None
    seqs = await idc.hand.fetch("SELECT seq, deleted, name FROM rows_customers WHERE region_code = 'DE'")
    assert [tuple(record) for record in seqs] == [(78, True, None)]


async def test_a_live_row_or_another_arrival_keeps_the_place(homes: Homes) -> None:
    move = plan()
    row = await homes.prepare(move)
    await homes.new.write(CUSTOMERS, [put("k", {"name": "Theirs"}, region=NEW)])
    assert await homes.arrive(move, row) == Occupied()
    await homes.new.write(CUSTOMERS, [put("k", {}, region=NEW)._replace(values=None)])
    assert await homes.arrive(move, row) == Arrived()
    assert await homes.arrive(plan(), row) == Awaited()
    await homes.new.write(CUSTOMERS, [put("k", {}, region=NEW)._replace(values=None)])
    assert await homes.arrive(plan(), row) == Awaited()


async def test_a_put_at_the_new_name_after_the_reservation_stands(homes: Homes) -> None:
    move = plan("r-1")
    await homes.arrive(move, await homes.prepare(move))
    (theirs,) = await homes.new.write(CUSTOMERS, [put("k", {"name": "Theirs"}, region=NEW)])
    await homes.depart(move)
    settled = await homes.settle(move)
    assert isinstance(settled, Written)
    _, new = await homes.read()
    assert isinstance(new, StoredRow)
    assert (new.version, new.values["name"]) == (theirs.version, "Theirs")
    found = await homes.new.moves.find(CUSTOMERS, homes.coming, "r-1")
    assert isinstance(found, NewHome)
    assert found.first_result is not None
    assert found.arriving is None


async def test_conditional_writes_at_the_new_name_wait_for_the_outcome(homes: Homes) -> None:
    move = plan()
    await homes.arrive(move, await homes.prepare(move))
    insert, update = put("k", {}, region=NEW, if_version=0), put("k", {}, region=NEW, if_version=7)
    for row in (insert, update):
        assert await homes.new.write(CUSTOMERS, [row]) == [Arriving()]
    await homes.depart(move)
    settled = await homes.settle(move)
    assert isinstance(settled, Written)
    for row in (insert, update):
        assert await homes.new.write(CUSTOMERS, [row]) == [VersionMismatch(settled.version)]


async def test_after_a_cancelled_move_the_place_is_free_and_what_copies_the_shard_sees_it(
    homes: Homes, idc: RowDatabase
) -> None:
    move = plan()
    await homes.arrive(move, await homes.prepare(move))
    before = await idc.hand.fetchval("SELECT seq FROM rows_customers WHERE region_code = 'FR'")
    await homes.sweep()
    after = await idc.hand.fetchrow("SELECT seq, isfinite(update_time) FROM rows_customers WHERE region_code = 'FR'")
    assert after is not None
    assert after[0] > before
    assert after[1]
    assert [type(side) for side in await homes.read()] == [StoredRow, Missing]
    (inserted,) = await homes.new.write(CUSTOMERS, [put("k", {}, region=NEW, if_version=0)])
    assert isinstance(inserted, Written)


async def test_a_retry_finds_the_first_result_also_after_others_have_written(homes: Homes) -> None:
    settled = await homes.move(plan("r-1"))
    await homes.new.write(CUSTOMERS, [put("k", {"name": "Later"}, region=NEW)])
    found = await homes.new.moves.find(CUSTOMERS, homes.coming, "r-1")
    assert isinstance(found, NewHome)
    assert found.first_result == Written(settled.version, settled.update_time, is_replay=True)
    # Also when its place is free again, and a row of the old name could come once more.
    await homes.new.write(CUSTOMERS, [put("k", {}, region=NEW)._replace(values=None)])
    again = plan("r-1")
    await write(homes, put("k", {"name": "Second"}))
    assert await homes.arrive(again, await homes.prepare(again)) == found.first_result
    assert [type(side) for side in await homes.read()] == [StoredRow, Missing]


async def test_a_request_id_that_was_used_for_a_put_still_remembers_the_move(homes: Homes) -> None:
    await homes.new.write(CUSTOMERS, [put("other", {}, region=NEW, request_id="r-1")])
    settled = await homes.move(plan("r-1"))
    found = await homes.new.moves.find(CUSTOMERS, homes.coming, "r-1")
    assert isinstance(found, NewHome)
    assert found.first_result == Written(settled.version, settled.update_time, is_replay=True)


@pytest.mark.parametrize(("mode", "epoch"), [("draining", 1), ("closed", 1), ("importing", 1), ("serving", 2)])
async def test_law_l2_no_step_passes_a_fence_that_does_not_serve(
    homes: Homes, idc: RowDatabase, mode: str, epoch: int
) -> None:
    move, other = plan(), Homes(CUSTOMERS, homes.old, homes.new, "other")
    await write(homes, put("other", ADA))
    await homes.arrive(move, await homes.prepare(move))
    await idc.hand.execute("UPDATE shard_fences SET mode = $1, epoch = $2", mode, epoch)
    before = await snapshot(idc)
    refused = FenceMiss(FenceMode(mode), epoch)
    for outcome in (
        await homes.old.moves.prepare(CUSTOMERS, other.leaving, None, plan()),
        await homes.depart(move),
        await other.arrive(plan(), StoredRow(OLD, "other", 1, datetime.now(UTC), ADA)),
        await homes.old.moves.void(CUSTOMERS, homes.leaving, move.move_id),
        await homes.settle(move),
        await homes.cancel(move),
    ):
        assert outcome == refused
    await homes.forget(move)
    if mode != "serving":
        # Whoever goes on takes the epoch from the fence itself.
        assert await homes.old.moves.overdue_departures(timedelta(), 10, {"customers": CUSTOMERS}) == []
        assert await homes.new.moves.overdue_arrivals(timedelta(), 10, {"customers": CUSTOMERS}) == []
    assert await snapshot(idc) == before


async def snapshot(idc: RowDatabase) -> list[str]:
    """Everything that a move could change."""
    tables = ("rows_customers", "row_departures", "row_arrivals", "shard_fences", "write_requests")
    return [
        str(await idc.hand.fetchval(f"SELECT coalesce(json_agg(t ORDER BY t::text), '[]') FROM {table} AS t"))
        for table in tables
    ]


async def test_a_column_that_the_new_home_does_not_have_yet_leaves_everything_as_it_is(
    homes: Homes, idc: RowDatabase
) -> None:
    move = plan()
    row = await homes.prepare(move)
    wider = Dataset("customers", CUSTOMERS.key_type, {**CUSTOMERS.columns, "new": Column("new", ColumnType.STRING)})
    before = await snapshot(idc)
    with pytest.raises(DatabaseUnavailable):
        await Homes(wider, homes.old, homes.new, "k").arrive(move, row)
    assert await snapshot(idc) == before


async def test_a_listing_waits_for_a_row_on_its_way_into_its_shards(homes: Homes) -> None:
    move = plan()
    await homes.arrive(move, await homes.prepare(move))
    arguments = {"after": None, "condition": None, "limit": 10}
    here, elsewhere = [ShardEpoch(NEW, 0, 1)], [ShardEpoch(NEW, 1, 1)]
    page = await homes.new.list_page(CUSTOMERS, here, **arguments)
    assert page.is_awaiting
    assert page.rows == ()
    assert not (await homes.new.list_page(CUSTOMERS, elsewhere, **arguments)).is_awaiting
    await homes.sweep()
    assert not (await homes.new.list_page(CUSTOMERS, here, **arguments)).is_awaiting


async def test_many_keys_at_once_tell_the_one_that_is_on_its_way(homes: Homes) -> None:
    move = plan()
    await homes.arrive(move, await homes.prepare(move))
    keys = [homes.coming, homes.coming._replace(key="nobody"), homes.coming._replace(epoch=9)]
    found = await homes.new.read(CUSTOMERS, keys)
    assert found == [Arriving(), Missing(), FenceMiss(FenceMode.SERVING, 1)]


async def test_what_is_overdue_is_found_with_all_that_is_needed_to_go_on(homes: Homes) -> None:
    move = plan()
    datasets = {"customers": CUSTOMERS}
    await homes.arrive(move, await homes.prepare(move))
    (departure,) = await homes.old.moves.overdue_departures(timedelta(), 10, datasets)
    assert (departure.plan, departure.place, departure.dataset) == (move, homes.leaving, "customers")
    (expected,) = await homes.new.moves.overdue_arrivals(timedelta(), 10, datasets)
    assert (expected.move_id, expected.place, expected.from_region_code) == (move.move_id, homes.coming, OLD)
    assert await homes.old.moves.overdue_departures(timedelta(minutes=1), 10, datasets) == []
    assert await homes.old.moves.overdue_departures(timedelta(), 10, {}) == []
