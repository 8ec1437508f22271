"""Several gateways on one database: every interleaving here is forced by locks, or hunted by numbers."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from rowstore.model import FenceMiss, FenceMode, StoredRow, VersionMismatch, WriteOutcome, Written
from tests.support.linearizability import Event, is_linearizable
from tests.support.row_databases import CUSTOMERS, RowDatabase, delete, get, put

if TYPE_CHECKING:
    from rowstore.store import RowStore


async def test_law_l2_a_writer_that_waited_for_the_fence_judges_it_as_it_is_now(idc: RowDatabase) -> None:
    """The fence is closed while writers of every kind queue for it."""
    (there,) = await idc.store.write(CUSTOMERS, [put("k", {"spend": 1})])
    assert isinstance(there, Written)
    writes = [put("k", {"spend": 2}), put("new", if_version=0), put("k", {"spend": 3}, if_version=there.version)]
    async with idc.holding_fence() as holder:
        tasks = [asyncio.create_task(idc.store.write(CUSTOMERS, [write, put("x", shard=1)])) for write in writes[:1]]
        tasks += [asyncio.create_task(idc.store.write(CUSTOMERS, [write])) for write in writes[1:]]
        await idc.until_waiting(len(tasks))
        await holder.execute("UPDATE shard_fences SET mode = 'closed' WHERE shard = 0")
    outcomes = [await task for task in tasks]
    assert [outcome[0] for outcome in outcomes] == [FenceMiss(FenceMode.CLOSED, 1)] * 3
    assert isinstance(outcomes[0][1], Written)
    rows = await idc.hand.fetch("SELECT key, spend FROM rows_customers WHERE shard = 0")
    assert [tuple(row) for row in rows] == [("k", 1)]


async def test_law_l2_a_writer_that_waited_does_not_write_at_an_epoch_that_is_gone(idc: RowDatabase) -> None:
    async with idc.holding_fence() as holder:
        task = asyncio.create_task(idc.store.write(CUSTOMERS, [put("k", request_id="r")]))
        await idc.until_waiting(1)
        await holder.execute("UPDATE shard_fences SET epoch = 2 WHERE shard = 0")
    assert await task == [FenceMiss(FenceMode.SERVING, 2)]
    assert await idc.hand.fetchval("SELECT count(*) FROM rows_customers") == 0


async def test_one_batch_may_hold_two_beliefs_about_an_epoch(idc: RowDatabase) -> None:
    await idc.set_fence(epoch=2)
    outcomes = await idc.store.write(CUSTOMERS, [put("old", epoch=1), put("new", epoch=2), put("newer", epoch=3)])
    assert outcomes[0] == outcomes[2] == FenceMiss(FenceMode.SERVING, 2)
    assert isinstance(outcomes[1], Written)
    assert [row["key"] for row in await idc.hand.fetch("SELECT key FROM rows_customers")] == ["new"]


async def test_law_l4_of_conditional_writes_that_queue_one_wins(idc: RowDatabase) -> None:
    (there,) = await idc.store.write(CUSTOMERS, [put("k")])
    assert isinstance(there, Written)
    async with idc.holding_fence():
        updates = [
            asyncio.create_task(idc.store.write(CUSTOMERS, [put("k", {"spend": i}, if_version=there.version)]))
            for i in range(4)
        ]
        inserts = [
            asyncio.create_task(idc.store.write(CUSTOMERS, [put("n", {"spend": i}, if_version=0)])) for i in range(4)
        ]
        await idc.until_waiting(8)
    for tasks in (updates, inserts):
        outcomes = [(await task)[0] for task in tasks]
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Written)]
        assert [o for o in outcomes if o is not winner] == [VersionMismatch(winner.version)] * 3


async def test_a_condition_that_comes_true_while_the_write_queues_is_judged_by_the_newest_row(idc: RowDatabase) -> None:
    """Delete and insert-if-absent queue in this order: the insert finds a tombstone that its snapshot does not show."""
    await idc.store.write(CUSTOMERS, [put("k")])
    async with idc.holding_fence():
        gone = asyncio.create_task(idc.store.write(CUSTOMERS, [delete("k")]))
        await idc.until_waiting(1)
        inserted = asyncio.create_task(idc.store.write(CUSTOMERS, [put("k", {"spend": 9}, if_version=0)]))
        await idc.until_waiting(2)
    assert isinstance((await gone)[0], Written)
    assert isinstance((await inserted)[0], Written)


async def test_gateways_with_overlapping_batches_over_many_shards_never_deadlock(idc: RowDatabase) -> None:
    gateways = [idc.store, *[await idc.another_gateway(size=4) for _ in range(3)]]
    chance = random.Random(7)

    async def hammer(gateway: RowStore, rounds: int) -> None:
        for _ in range(rounds):
            numbers = chance.sample(range(60), 40)
            writes = [put(f"k{n}", {"spend": n}, shard=n % 4, request_id=f"{chance.random()}") for n in numbers]
            outcomes = await gateway.write(CUSTOMERS, writes)
            assert all(isinstance(outcome, Written) for outcome in outcomes)

    await asyncio.gather(*(hammer(gateway, 15) for gateway in gateways for _ in range(4)))
    assert await idc.hand.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_sequence_order_is_commit_order(idc: RowDatabase) -> None:
    """A reader that goes on from the highest sequence it has seen misses no change, however many gateways write."""
    gateways = [idc.store, *[await idc.another_gateway() for _ in range(3)]]
    done = asyncio.Event()
    total = 4 * 4 * 12

    async def write(gateway: RowStore, who: int) -> None:
        for number in range(12):
            await gateway.write(CUSTOMERS, [put(f"{who}-{number}-{i}", shard=i % 2) for i in range(4)])

    async def follow(shard: int) -> int:
        offset, seen = 0, 0
        while True:
            was_done = done.is_set()
            rows = await idc.hand.fetch(
                "SELECT seq FROM rows_customers WHERE shard = $1 AND seq > $2 ORDER BY seq", shard, offset
            )
            seen += len(rows)
            offset = rows[-1]["seq"] if rows else offset
            if was_done and not rows:
                return seen

    async def follow_all() -> int:
        return await follow(0) + await follow(1)

    async def write_all() -> None:
        await asyncio.gather(*(write(gateway, who) for who, gateway in enumerate(gateways)))
        done.set()

    seen, _ = await asyncio.gather(follow_all(), write_all())
    assert seen == total
    for fence in await idc.store.fences.get():
        times = await idc.hand.fetch(
            "SELECT update_time FROM rows_customers WHERE shard = $1 ORDER BY seq", fence.shard
        )
        assert times == sorted(times)


async def test_law_l4_histories_of_concurrent_gateways_are_linearizable(idc: RowDatabase) -> None:
    gateways = [idc.store, *[await idc.another_gateway() for _ in range(3)]]
    history: defaultdict[str, list[Event]] = defaultdict(list)
    chance = random.Random(3)

    async def client(gateway: RowStore, who: int) -> None:
        for number in range(25):
            key = f"k{chance.randrange(3)}"
            start = time.monotonic()
            match chance.randrange(4):
                case 0:
                    (row,) = await gateway.read(CUSTOMERS, [get(key)])
                    value = row.values["spend"] if isinstance(row, StoredRow) else None
                    history[key].append(Event(False, value, start, time.monotonic(), str(who)))
                case 1:
                    await gateway.write(CUSTOMERS, [delete(key)])
                    history[key].append(Event(True, None, start, time.monotonic(), str(who)))
                case _:
                    value = who * 1000 + number
                    write = put(key, {"spend": value}, request_id=f"{who}-{number}")
                    attempts = await asyncio.gather(*(gateway.write(CUSTOMERS, [write]) for _ in range(2)))
                    assert sum(1 for (o,) in attempts if isinstance(o, Written) and o.is_replay) == 1
                    history[key].append(Event(True, value, start, time.monotonic(), str(who)))

    await asyncio.gather(*(client(gateway, who) for who, gateway in enumerate(gateways)))
    assert all(is_linearizable(events) for events in history.values())


async def test_law_l4_counters_that_many_gateways_raise_by_condition_lose_no_step(idc: RowDatabase) -> None:
    gateways = [idc.store, *[await idc.another_gateway() for _ in range(2)]]

    async def raise_by_one(gateway: RowStore, who: int, number: int) -> None:
        while True:
            (row,) = await gateway.read(CUSTOMERS, [get("counter")])
            version, value = (row.version, row.values["spend"]) if isinstance(row, StoredRow) else (0, 0)
            assert isinstance(value, int)
            write = put("counter", {"spend": value + 1}, if_version=version, request_id=f"{who}-{number}-{version}")
            # Twice at once, as an impatient client does.
            outcomes: list[list[WriteOutcome]] = await asyncio.gather(
                *(gateway.write(CUSTOMERS, [write]) for _ in "ab")
            )
            if all(isinstance(outcome, Written) for (outcome,) in outcomes):
                return
            assert all(isinstance(outcome, VersionMismatch) for (outcome,) in outcomes)

    async def client(gateway: RowStore, who: int) -> None:
        for number in range(8):
            await raise_by_one(gateway, who, number)

    await asyncio.gather(*(client(gateway, who) for who, gateway in enumerate(gateways)))
    (row,) = await idc.store.read(CUSTOMERS, [get("counter")])
    assert isinstance(row, StoredRow)
    assert row.values["spend"] == 24
