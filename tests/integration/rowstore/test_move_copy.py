"""Copies of shards: equal at the end, whatever is written, broken off or shaped differently meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from policy.errors import DatabaseUnavailable, SchemaDiffers, StaleAttempt
from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.model import ShardEpoch, Written
from rowstore.moving import End, Head, ImportProgress, SliceEnd, SliceStart
from rowstore.schema import ensure_datasets
from tests.support.row_databases import CUSTOMERS, ORDERS, STEP, MovePair, assert_equal, delete, fill, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rowstore.moving import ExportPart

WIDER = Dataset("customers", KeyType.STRING, {**CUSTOMERS.columns, "city": Column("city", ColumnType.STRING)})


async def until_part(
    parts: AsyncIterator[ExportPart], is_last: Callable[[ExportPart], bool]
) -> AsyncIterator[ExportPart]:
    """An export that breaks off before some part."""
    async for part in parts:
        if is_last(part):
            raise DatabaseUnavailable("broken off by the test")
        yield part


async def take_all(
    pair: MovePair,
    parts: AsyncIterator[ExportPart],
    begun: ImportProgress,
    told: list[ImportProgress],
    *,
    closed_at_seq: int | None = None,
) -> None:
    """Imports, and notes what is told."""
    async for progress in pair.receiver.import_parts(STEP, parts, begun=begun, closed_at_seq=closed_at_seq):
        told.append(progress)  # noqa: PERF401 (what was told before an error counts)


async def test_law_l3_a_shard_that_is_written_while_it_is_copied_arrives_whole(pair: MovePair) -> None:
    await fill(pair, 3000)
    await pair.source.store.write(ORDERS, [put(i, {"order": "o"}) for i in range(500)])
    is_over = asyncio.Event()
    acknowledged = 0

    async def write(number: int) -> None:
        nonlocal acknowledged
        turn = 0
        while not is_over.is_set():
            turn += 1
            key = f"k{(number * 997 + turn * 31) % 3500}"
            change = delete(key) if turn % 5 == 0 else put(key, {"spend": turn}, request_id=f"r{number}-{turn}")
            outcome = (await pair.source.store.write(CUSTOMERS, [change]))[0]
            acknowledged += isinstance(outcome, Written)

    await pair.sender.begin_export(STEP)
    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(write(number))
        for _ in range(3):
            await pair.copy()
        progress = await pair.close_and_copy()
        is_over.set()
    assert acknowledged > 0
    await assert_equal(pair)
    assert progress.digest == await pair.sender.digest(STEP) == await pair.receiver.digest(STEP)
    assert progress.digest is not None
    assert progress.digest.rows == sum(
        len(rows) for table, rows in (await pair.target.contents()).items() if table != "write_requests"
    )


async def test_a_copy_that_broke_off_in_a_slice_goes_on_after_the_last_whole_one(pair: MovePair) -> None:
    await fill(pair, 2000)
    await pair.sender.begin_export(STEP)
    begun = await pair.receiver.begin_import(STEP)
    slices = 0

    def in_second_slice(part: ExportPart) -> bool:
        nonlocal slices
        slices += isinstance(part, SliceEnd)
        return slices == 2

    told: list[ImportProgress] = []
    with pytest.raises(DatabaseUnavailable):
        await take_all(pair, until_part(pair.parts(STEP, begun), in_second_slice), begun, told)
    assert len(told) == 1
    assert 0 < told[0].copied_seq < 2000
    resumed = await pair.receiver.begin_import(STEP)
    assert resumed == told[0]
    assert await pair.target.hand.fetchval("SELECT count(*) FROM rows_customers") == resumed.rows_copied
    # Keys of the first part change, and one of the second: they come once more, and once.
    await pair.source.store.write(CUSTOMERS, [put("k0", {"spend": -1}), put("k1999", {"spend": -1}), delete("k1")])
    progress = await pair.copy()
    assert progress.rows_copied == 2000 + 2
    await pair.close_and_copy()
    await assert_equal(pair)


async def test_a_break_at_any_part_leaves_a_copy_that_can_be_finished(pair: MovePair) -> None:
    await fill(pair, 600, request_id="first")
    await pair.source.store.write(ORDERS, [put(1, {"order": "o"})])
    await pair.sender.begin_export(STEP)
    for broken_at in range(1, 30):
        begun = await pair.receiver.begin_import(STEP)
        count = 0

        def is_there(part: ExportPart, broken_at: int = broken_at) -> bool:
            nonlocal count
            count += 1
            return count > broken_at

        parts = until_part(pair.parts(STEP, begun), is_there)
        try:
            await take_all(pair, parts, begun, [])
        except DatabaseUnavailable:
            await pair.source.store.write(CUSTOMERS, [put(f"k{broken_at}", {"spend": -broken_at})])
            continue
        break
    else:
        pytest.fail("never came to its end")
    progress = await pair.close_and_copy()
    await assert_equal(pair)
    assert progress.digest == await pair.sender.digest(STEP)


async def test_a_last_round_that_broke_off_anywhere_can_be_finished(pair: MovePair) -> None:
    await fill(pair, 600)
    await pair.sender.begin_export(STEP)
    await pair.copy()
    await fill(pair, 300, request_id="late")
    await pair.sender.drain(STEP)
    fence = await pair.sender.close(STEP)
    for broken_at in range(1, 30):
        begun = await pair.receiver.begin_import(STEP)
        parts = pair.parts(STEP, begun, is_final=True)
        left = iter(range(broken_at))
        try:
            await take_all(
                pair,
                until_part(parts, lambda _, left=left: next(left, None) is None),
                begun,
                [],
                closed_at_seq=fence.last_seq,
            )
        except DatabaseUnavailable:
            with pytest.raises(StaleAttempt):
                await pair.receiver.open(STEP)
            continue
        break
    else:
        pytest.fail("never came to its end")
    await assert_equal(pair)
    assert await pair.receiver.digest(STEP) == await pair.sender.digest(STEP)
    await pair.receiver.open(STEP)


async def test_law_l3_a_retry_at_the_new_owner_finds_its_first_result(pair: MovePair) -> None:
    (first,) = await pair.source.store.write(CUSTOMERS, [put("k", {"spend": 1}, request_id="early")])
    await pair.sender.begin_export(STEP)
    await pair.copy()
    (second,) = await pair.source.store.write(CUSTOMERS, [put("k", {"spend": 2}, request_id="late")])
    await pair.close_and_copy()
    await pair.receiver.open(STEP)
    for request_id, result in (("early", first), ("late", second)):
        (replay,) = await pair.target.store.write(CUSTOMERS, [put("k", epoch=2, request_id=request_id)])
        assert isinstance(result, Written)
        assert replay == result._replace(is_replay=True)


async def test_law_l3_of_requests_at_one_time_none_is_left_behind(pair: MovePair) -> None:
    """The clock of the shard stands still, so every round ends, and begins, at the same time."""
    future = datetime(2100, 1, 1, tzinfo=UTC)
    await pair.source.hand.execute("UPDATE shard_fences SET last_time = $1 WHERE shard = 0", future)
    for turn in range(3):
        await pair.source.store.write(CUSTOMERS, [put(f"k{i}", request_id=f"r{turn}-{i}") for i in range(400)])
        await pair.sender.begin_export(STEP)
        await pair.copy()
    await pair.close_and_copy()
    assert len((await pair.target.contents())["write_requests"]) == 1200
    await assert_equal(pair)


async def test_law_l4_sequences_and_times_go_on_at_the_new_owner(pair: MovePair) -> None:
    future = datetime(2100, 1, 1, tzinfo=UTC)
    await fill(pair, 5)
    await pair.source.hand.execute("UPDATE shard_fences SET last_time = $1 WHERE shard = 0", future)
    (last,) = await pair.source.store.write(CUSTOMERS, [put("k")])
    await pair.move()
    (fence,) = await pair.target.store.fences.get([ShardEpoch("DE", 0, 2)])
    (next_,) = await pair.target.store.write(CUSTOMERS, [put("k", epoch=2)])
    assert isinstance(last, Written)
    assert isinstance(next_, Written)
    assert (fence.last_seq, fence.last_time) == (last.version, last.update_time)
    assert next_.version == last.version + 1
    assert next_.update_time >= last.update_time


async def test_an_empty_shard_moves_and_back(pair: MovePair) -> None:
    progress = await pair.move()
    assert (progress.copied_seq, progress.digest) == (0, await pair.sender.digest(STEP))
    await pair.sender.purge(STEP, progress.digest)
    back = MovePair(pair.target, pair.source, pair.receiver, pair.sender)
    await pair.target.store.write(CUSTOMERS, [put("k", epoch=2)])
    step = STEP._replace(epoch=2, attempt=2)
    progress = await back.move(step)
    assert (await pair.receiver.purge(step, progress.digest)).remaining == 0
    assert isinstance((await pair.source.store.write(CUSTOMERS, [put("k", epoch=3)]))[0], Written)


@pytest.mark.parametrize(
    ("dataset", "what"),
    [
        (WIDER, "column city of table rows_customers is missing at the target"),
        (Dataset("newer", KeyType.STRING, {}), "table rows_newer is missing at the target"),
    ],
)
async def test_law_l8_what_the_target_lacks_is_named_and_nothing_is_copied(
    pair: MovePair, dataset: Dataset, what: str
) -> None:
    await ensure_datasets(pair.source.database, [dataset])
    await fill(pair, 10)
    await pair.sender.begin_export(STEP)
    with pytest.raises(SchemaDiffers, match=what):
        await pair.copy()
    assert not any((await pair.target.contents()).values())
    await ensure_datasets(pair.target.database, [dataset])
    await pair.copy()
    await pair.close_and_copy()
    await assert_equal(pair)


async def test_law_l8_a_column_of_another_type_at_the_target_is_named(pair: MovePair) -> None:
    await pair.target.hand.execute("ALTER TABLE rows_customers ALTER spend TYPE text")
    await fill(pair, 10)
    await pair.sender.begin_export(STEP)
    with pytest.raises(SchemaDiffers, match="column spend of table rows_customers has type text at the target, bigint"):
        await pair.copy()
    assert not any((await pair.target.contents()).values())


async def test_law_l3_a_column_that_comes_while_a_shard_is_copied_is_not_missed(pair: MovePair) -> None:
    await fill(pair, 1000)
    await pair.sender.begin_export(STEP)
    begun = await pair.receiver.begin_import(STEP)
    await ensure_datasets(pair.target.database, [WIDER])
    # However fast the export is, it reads no row before the column is there.
    hand = pair.source.hand
    await hand.execute("BEGIN; LOCK TABLE rows_customers IN ACCESS EXCLUSIVE MODE")

    async def with_column_in_between() -> AsyncIterator[ExportPart]:
        async for part in pair.parts(STEP, begun):
            yield part
            if isinstance(part, Head):
                await hand.execute("ALTER TABLE rows_customers ADD COLUMN city text; COMMIT")
                await pair.source.store.write(WIDER, [put("k999", {"city": "Bonn"})])

    with pytest.raises(DatabaseUnavailable, match="a table was changed"):
        await take_all(pair, with_column_in_between(), begun, [])
    await pair.copy()
    await pair.close_and_copy()
    await assert_equal(pair)
    assert await pair.target.hand.fetchval("SELECT city FROM rows_customers WHERE key = 'k999'") == "Bonn"


async def test_rows_of_other_shards_and_regions_stay_where_they_are(pair: MovePair) -> None:
    await fill(pair, 10)
    await pair.source.store.write(CUSTOMERS, [put("other", shard=1)])
    await pair.source.store.fences.open([ShardEpoch("FR", 0, 1)])
    await pair.source.store.write(CUSTOMERS, [put("autre", region="FR", request_id="r")])
    progress = await pair.move()
    assert await pair.target.hand.fetchval("SELECT count(*) FROM rows_customers") == 10
    await pair.sender.purge(STEP, progress.digest)
    assert await pair.source.hand.fetchval("SELECT count(*) FROM rows_customers") == 2
    assert await pair.source.hand.fetchval("SELECT count(*) FROM write_requests") == 1


async def test_an_export_is_made_of_parts_in_their_order(pair: MovePair) -> None:
    await fill(pair, 300)
    await pair.sender.begin_export(STEP)
    parts = pair.sender.export(STEP, after_seq=0, after_time=None, is_final=False)
    async with aclosing(parts):
        kinds = [(type(part), part) async for part in parts]
    assert [kind for kind, _ in kinds] == [
        Head,
        *[SliceStart, bytes, SliceEnd] * 2,
        *[SliceStart, bytes, SliceEnd],
        End,
    ]
    ends = [part for _, part in kinds if isinstance(part, SliceEnd)]
    assert [end.through_seq for end in ends] == [256, 300, None]
    assert [end.through_time is not None for end in ends] == [False, False, True]


async def test_an_export_that_is_left_early_leaves_nothing_behind(pair: MovePair) -> None:
    await fill(pair, 3000)
    await pair.sender.begin_export(STEP)
    async with aclosing(pair.sender.export(STEP, after_seq=0, after_time=None, is_final=False)) as parts:
        async for part in parts:
            if isinstance(part, SliceStart):
                break
    assert not [task for task in asyncio.all_tasks() if "run" in repr(task.get_coro())]


async def test_sizes_are_told_in_the_order_of_the_question(pair: MovePair) -> None:
    await fill(pair, 300)
    await pair.source.store.write(ORDERS, [put(i, shard=1) for i in range(100)])
    asked = [ShardEpoch("DE", shard, 1) for shard in (1, 0, 3)]
    sizes = await pair.sender.measure(asked)
    assert [(size.shard, size.rows) for size in sizes] == [(1, 100), (0, 300), (3, 0)]
    assert sizes[0].bytes > 0
    assert sizes[2].bytes == 0
