"""A retry finds its first result, whatever has happened since (laws L3 and L4)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from rowstore.model import FenceMiss, FenceMode, Missing, RowWrite, StoredRow, VersionMismatch, WriteOutcome, Written
from tests.support.row_databases import CUSTOMERS, ORDERS, RowDatabase, delete, get, put

RETRY = "11111111-2222-3333-4444-555555555555"


def replayed(outcome: WriteOutcome) -> WriteOutcome:
    """The outcome as a retry of it gets it."""
    assert isinstance(outcome, Written)
    return outcome._replace(is_replay=True)


async def spend_of(idc: RowDatabase, key: str) -> object:
    (row,) = await idc.store.read(CUSTOMERS, [get(key)])
    return row.values["spend"] if isinstance(row, StoredRow) else None


async def test_a_retry_after_another_write_does_not_write_again(idc: RowDatabase) -> None:
    """A, B, then A again: the row stays as B left it."""
    write = put("k", {"spend": 1}, request_id=RETRY)
    first = await idc.store.write(CUSTOMERS, [write])
    await idc.store.write(CUSTOMERS, [put("k", {"spend": 2})])
    assert await idc.store.write(CUSTOMERS, [write]) == [replayed(first[0])]
    assert await spend_of(idc, "k") == 2


async def test_a_retried_insert_does_not_bring_back_what_was_deleted_since(idc: RowDatabase) -> None:
    write = put("k", {"spend": 1}, if_version=0, request_id=RETRY)
    first = await idc.store.write(CUSTOMERS, [write])
    await idc.store.write(CUSTOMERS, [delete("k")])
    assert await idc.store.write(CUSTOMERS, [write]) == [replayed(first[0])]
    assert await idc.store.read(CUSTOMERS, [get("k")]) == [Missing()]


async def test_a_retried_delete_does_not_delete_what_was_written_since(idc: RowDatabase) -> None:
    write = delete("k", request_id=RETRY)
    first = await idc.store.write(CUSTOMERS, [write])
    await idc.store.write(CUSTOMERS, [put("k", {"spend": 2})])
    assert await idc.store.write(CUSTOMERS, [write]) == [replayed(first[0])]
    assert await spend_of(idc, "k") == 2


async def test_a_retried_update_is_answered_with_its_version_not_with_a_conflict(idc: RowDatabase) -> None:
    (there,) = await idc.store.write(CUSTOMERS, [put("k")])
    assert isinstance(there, Written)
    write = put("k", {"spend": 1}, if_version=there.version, request_id=RETRY)
    first = await idc.store.write(CUSTOMERS, [write])
    assert await idc.store.write(CUSTOMERS, [write]) == [replayed(first[0])]


async def test_a_conditional_write_that_failed_is_not_remembered(idc: RowDatabase) -> None:
    write = put("k", {"spend": 1}, if_version=0, request_id=RETRY)
    await idc.store.write(CUSTOMERS, [put("k", {"spend": 2})])
    assert isinstance((await idc.store.write(CUSTOMERS, [write]))[0], VersionMismatch)
    await idc.store.write(CUSTOMERS, [delete("k")])
    (outcome,) = await idc.store.write(CUSTOMERS, [write])
    assert isinstance(outcome, Written)
    assert not outcome.is_replay


async def test_replays_leave_the_rest_of_their_batch_alone(idc: RowDatabase) -> None:
    old = [put(f"old{i}", {"spend": i}, request_id=f"{RETRY}-{i}", shard=i % 4) for i in range(8)]
    first = await idc.store.write(CUSTOMERS, old)
    new = [put(f"new{i}", {"spend": i}, request_id=f"{RETRY}-new-{i}", shard=i % 4) for i in range(8)]
    mixed = [write for pair in zip(old, new, strict=True) for write in pair]
    outcomes = await idc.store.write(CUSTOMERS, mixed)
    assert outcomes[0::2] == [replayed(outcome) for outcome in first]
    assert all(isinstance(o, Written) and not o.is_replay for o in outcomes[1::2])
    assert len(await idc.hand.fetch("SELECT FROM rows_customers")) == 16


@pytest.mark.parametrize("if_version", [None, 0])
async def test_replays_among_conditional_writes_leave_the_rest_alone(idc: RowDatabase, if_version: int | None) -> None:
    old = put("old", if_version=0, request_id=RETRY)
    first = await idc.store.write(CUSTOMERS, [old])
    await idc.store.write(CUSTOMERS, [delete("old"), put("there", {"spend": 1})])
    outcomes = await idc.store.write(
        CUSTOMERS,
        [put("there", if_version=0, request_id="t"), old, put("new", if_version=if_version, request_id="n")],
    )
    assert isinstance(outcomes[0], VersionMismatch)
    assert outcomes[1] == replayed(first[0])
    assert isinstance(outcomes[2], Written)
    assert not outcomes[2].is_replay


async def test_a_batch_of_one_request_is_replayed_row_by_row(idc: RowDatabase) -> None:
    batch = [put(f"k{i}", {"spend": i}, shard=i % 4, request_id=RETRY) for i in range(50)]
    first = await idc.store.write(CUSTOMERS, batch)
    again = await idc.store.write(CUSTOMERS, list(reversed(batch)))
    assert again == [replayed(outcome) for outcome in reversed(first)]


async def test_law_l3_a_request_that_is_split_otherwise_at_its_retry_loses_nothing(idc: RowDatabase) -> None:
    """A retry may bring more of a request than the first attempt did, or less, or in other company."""
    rows = [put(f"k{i}", {"spend": i}, request_id=RETRY) for i in range(6)]
    first = await idc.store.write(CUSTOMERS, rows[1:3])
    second = await idc.store.write(CUSTOMERS, rows[:4])
    assert second[1:3] == [replayed(outcome) for outcome in first]
    assert all(isinstance(o, Written) and not o.is_replay for o in (second[0], second[3]))
    third = await idc.store.write(CUSTOMERS, rows)
    assert third[:4] == [replayed(second[0]), *second[1:3], replayed(second[3])]
    assert all(isinstance(o, Written) and not o.is_replay for o in third[4:])
    fourth = await idc.store.write(CUSTOMERS, rows)
    assert [o.version for o in fourth if isinstance(o, Written) and o.is_replay] == [
        o.version for o in third if isinstance(o, Written)
    ]


async def test_one_request_with_and_without_conditions_is_remembered_whole(idc: RowDatabase) -> None:
    rows = [put("a", request_id=RETRY), put("b", if_version=0, request_id=RETRY), put("c", request_id=RETRY)]
    first = await idc.store.write(CUSTOMERS, rows)
    assert all(isinstance(outcome, Written) and not outcome.is_replay for outcome in first)
    await idc.store.write(CUSTOMERS, [delete("a"), delete("b")])
    assert await idc.store.write(CUSTOMERS, rows) == [replayed(outcome) for outcome in first]


async def test_a_request_id_means_nothing_in_another_dataset_or_shard(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("1", request_id=RETRY)])
    elsewhere = await idc.store.write(CUSTOMERS, [put("x", shard=1, request_id=RETRY)])
    other = await idc.store.write(ORDERS, [put(1, request_id=RETRY)])
    assert not any(isinstance(o, Written) and o.is_replay for o in elsewhere + other)


@pytest.mark.parametrize("if_version", [None, 0])
async def test_law_l4_a_retry_that_queues_behind_its_first_attempt_writes_nothing(
    idc: RowDatabase, if_version: int | None
) -> None:
    """The retry's snapshot is older than the first attempt's commit: only the unique index can tell."""
    write = put("k", {"spend": 1}, if_version=if_version, request_id=RETRY)
    gateways = [idc.store, await idc.another_gateway(), await idc.another_gateway()]
    async with idc.holding_fence():
        attempts = [asyncio.create_task(gateway.write(CUSTOMERS, [write])) for gateway in gateways]
        await idc.until_waiting(len(attempts))
    outcomes = [(await attempt)[0] for attempt in attempts]
    (first,) = [o for o in outcomes if isinstance(o, Written) and not o.is_replay]
    assert [o for o in outcomes if o is not first] == [replayed(first)] * 2
    assert await idc.hand.fetchval("SELECT seq FROM rows_customers WHERE key = 'k'") == first.version


async def test_law_l4_a_retry_that_queues_with_another_write_between_keeps_the_other(idc: RowDatabase) -> None:
    """In the queue for the fence: A, B, and A again. B was acknowledged last, so B stays."""
    first, between = put("k", {"spend": 1}, request_id=RETRY), put("k", {"spend": 2})
    tasks: list[asyncio.Task[list[WriteOutcome]]] = []
    async with idc.holding_fence():
        for number, write in enumerate((first, between, first), 1):
            gateway = await idc.another_gateway()
            tasks.append(asyncio.create_task(gateway.write(CUSTOMERS, [write])))
            await idc.until_waiting(number)
    outcomes = [(await task)[0] for task in tasks]
    assert outcomes[2] == replayed(outcomes[0])
    assert await spend_of(idc, "k") == 2


async def test_a_replay_of_a_shard_that_has_left_goes_to_its_new_owner(idc: RowDatabase) -> None:
    write = put("k", request_id=RETRY)
    await idc.store.write(CUSTOMERS, [write])
    await idc.set_fence(mode="closed")
    assert await idc.store.write(CUSTOMERS, [write]) == [FenceMiss(FenceMode.CLOSED, 1)]


async def test_requests_are_forgotten_when_they_are_old(idc: RowDatabase) -> None:
    rows: list[RowWrite] = [put(f"k{i}", request_id=f"r{i}") for i in range(5)]
    await idc.store.write(CUSTOMERS, rows)
    assert await idc.store.forget_requests(timedelta(minutes=1)) == 0
    await idc.hand.execute("UPDATE write_requests SET update_time = now() - interval '1 hour' WHERE request_id < 'r3'")
    assert await idc.store.forget_requests(timedelta(minutes=30)) == 3
    outcomes = await idc.store.write(CUSTOMERS, rows)
    assert [o.is_replay for o in outcomes if isinstance(o, Written)] == [False, False, False, True, True]


async def test_a_request_is_not_forgotten_in_parts(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("a", request_id=RETRY)])
    await idc.store.write(CUSTOMERS, [put("b", request_id=RETRY)])
    await idc.hand.execute("UPDATE write_requests SET update_time = now() - interval '1 hour' WHERE part = 0")
    assert await idc.store.forget_requests(timedelta(minutes=30)) == 0
    await idc.hand.execute("UPDATE write_requests SET update_time = now() - interval '1 hour'")
    assert await idc.store.forget_requests(timedelta(minutes=30)) == 2


async def test_puts_and_deletes_of_requests_over_shards_are_numbered_and_remembered_each_as_its_own(
    idc: RowDatabase,
) -> None:
    """Laws L3 and L4: what is sent for many rows at once is taken apart again row by row."""
    requests = ("one", "two", "")
    writes = [
        (delete if number % 2 else put)(f"k{number}", shard=number % 3, request_id=requests[number % 5 % 3])
        for number in range(60)
    ]
    outcomes = await idc.store.write(CUSTOMERS, writes)
    versions = {w.key: o.version for w, o in zip(writes, outcomes, strict=True) if isinstance(o, Written)}
    rows = await idc.hand.fetch("SELECT key, shard, seq, deleted FROM rows_customers")
    assert {row["key"]: row["seq"] for row in rows} == versions
    assert {row["key"]: row["deleted"] for row in rows} == {write.key: write.values is None for write in writes}
    for shard in range(3):
        assert sorted(row["seq"] for row in rows if row["shard"] == shard) == list(range(1, 21))
    assert await idc.hand.fetchval("SELECT count(*) FROM write_requests") == 2 * 3
    again = await idc.store.write(CUSTOMERS, [write for write in writes if write.request_id])
    assert again == [replayed(o) for w, o in zip(writes, outcomes, strict=True) if w.request_id]
