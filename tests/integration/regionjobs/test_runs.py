"""Runs of jobs shard by shard: which rows they get, and when they end."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest

from regionjobs.definition import Kind, Retry, job
from rowstore.jobs.model import RunResult
from tests.support.job_runner_parts import Recorder, enter

QUICK = Retry(attempts=5, first_pause=timedelta(milliseconds=10))


def settle(handler, **words):
    """A job over customers in the EU."""
    return job(**{"name": "settle", "dataset": "customers", "regions": ["EU"], "retry": QUICK} | words)(handler)


def changes(*shards, seqs):
    """Entries of a ledger in which each shard has these sequences."""
    return sorted(f"{shard}/{seq}" for shard in shards for seq in seqs)


async def test_a_job_covers_codes_and_groups_or_everything_that_its_idc_owns(site):
    await site.fill("DE", 3)
    await site.fill("FR", 3)
    regions = {"by-code": ["FR"], "by-group": ["EU"], "by-both": ["DE", "EU"], "all": []}
    jobs = [settle(Recorder(), name=name, regions=codes, batch_size=2) for name, codes in regions.items()]
    wanted = {name: ["DE/0", "DE/1", "FR/0"] for name in regions} | {"by-code": ["FR/0"]}
    async with site.runner("fra", *jobs), site.runner("ams", *jobs):
        for name, shards in wanted.items():
            await site.passed("fra", name)
            assert await site.ledger(name) == changes(*shards, seqs=[1, 2, 3])
            assert await site.offsets("fra", name) == {(shard[:2], int(shard[3:])): 3 for shard in shards}
            (run,) = await site.runs("fra", name, 1)
            assert (run.result, run.rows, run.shards) == (RunResult.DONE, 3 * len(shards), len(shards))
            assert run.batches >= 2 * len(shards)
            # Every IDC has its own: nothing was ordered in ams.
            assert await site.ledger(name, "ams") == []


async def test_a_pass_handles_what_has_changed_since_the_last_one(site):
    recorder = Recorder()
    async with site.runner("fra", settle(recorder)):
        await site.passed("fra", "settle")
        assert recorder.batches == []
        keys = site.keys_in("DE", 0, 2)
        await site.put("DE", *keys)
        await site.passed("fra", "settle")
        await site.put("DE", keys[0])
        await site.passed("fra", "settle")
        await site.passed("fra", "settle")
        assert recorder.batches == [["DE/0/1", "DE/0/2"], ["DE/0/3"]]


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_run_ends_at_the_batch_boundary_and_the_next_begins_with_the_new_set(site, kind):
    await site.fill("DE", 3)
    await site.fill("FR", 3)
    recorder = Recorder()
    made = settle(recorder, kind=kind, batch_size=1, concurrency=1)
    async with site.runner("fra", made) as runner:

        async def another_shard_comes():
            await site.move("FR", 1, "fra")
            await runner.sees(site.revision)

        recorder.then = another_shard_comes
        if kind is Kind.BATCH:
            await site.passed("fra", "settle")
        assert await site.entered("settle", 12) == changes("DE/0", "DE/1", "FR/0", "FR/1", seqs=[1, 2, 3])
        first, second = (await site.runs("fra", "settle", 1 if kind is Kind.LONG_RUNNING else 2))[:2]
    assert (first.result, first.reason, first.shards) == (RunResult.ENDED, "FR/1 has come", 3)
    assert (first.rows, first.batches) == (1, 1)
    assert second.shards == 4
    assert recorder.batches[0] not in recorder.batches[1:]
    if kind is Kind.BATCH:
        assert (second.result, second.reason, second.rows) == (RunResult.DONE, "", 11)


async def test_a_long_running_job_sees_new_rows_at_once_and_ends_when_its_runner_stops(site):
    made = settle(Recorder(), kind="long-running")
    async with site.runner("fra", made):
        await site.fill("DE", 2)
        assert await site.entered("settle", 4) == changes("DE/0", "DE/1", seqs=[1, 2])
        await site.put("FR", *site.keys_in("FR", 0, 1))
        await site.entered("settle", 5)
    (run,) = await site.runs("fra", "settle", 1)
    assert (run.result, run.reason, run.rows) == (RunResult.ENDED, "the runner stops", 5)


async def test_deleted_rows_come_only_where_they_are_wanted(site):
    seen = {"with": [], "without": []}

    def looking(name):
        async def look(batch):
            seen[name] += [(row.key, row.is_deleted) for row in batch]

        return look

    one, two = site.keys_in("DE", 0, 2)
    await site.put("DE", one, two)
    await site.put("DE", one, delete=True)
    jobs = [settle(looking(name), name=name, with_deleted=name == "with") for name in seen]
    async with site.runner("fra", *jobs):
        for name in seen:
            await site.passed("fra", name)
            assert await site.offsets("fra", name) == {("DE", 0): 3}
    assert seen == {"with": [(two, False), (one, True)], "without": [(two, False)]}


async def test_batches_come_as_arrow_tables_where_the_job_says_so(site):
    tables = []

    async def add_up(batch):
        tables.append(batch.table.select(["region_code", "shard", "seq", "key", "spend"]).to_pydict())
        keys = [batch.idempotency_key(seq) for seq in batch.table["seq"].to_pylist()]
        await enter(batch, [key.split("/")[1:] for key in keys])

    keys = site.keys_in("DE", 1, 3)
    await site.put("DE", *keys)
    async with site.runner("fra", settle(add_up, format="arrow", batch_size=2)):
        await site.passed("fra", "settle")
    assert [table["key"] for table in tables] == [keys[:2], keys[2:]]
    assert tables[0] == {"region_code": ["DE"] * 2, "shard": [1] * 2, "seq": [1, 2], "key": keys[:2], "spend": [1, 1]}
    assert await site.ledger("settle") == changes("DE/1", seqs=[1, 2, 3])


async def test_a_plain_function_runs_in_a_thread_and_its_effects_commit_with_the_offset(site):
    threads, fails = [], [True]

    def plain(batch):
        threads.append(threading.current_thread())
        batch.connection.exec_driver_sql(
            "INSERT INTO effects_ledger (region_code, shard, job, seq, idc) VALUES ($1, $2, $3, $4, $5)",
            [(row.region_code, row.shard, batch.job, row.version, batch.idc) for row in batch],
        )
        assert batch.connection.exec_driver_sql("SELECT count(*) FROM effects_ledger").scalar_one() == len(batch)
        if fails.pop() if fails else False:
            raise ValueError("once")

    await site.put("DE", *site.keys_in("DE", 0, 3))
    async with site.runner("fra", settle(plain)):
        await site.passed("fra", "settle")
    assert await site.ledger("settle") == changes("DE/0", seqs=[1, 2, 3])
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_key_for_what_leaves_the_transaction_is_the_same_for_each_try_on_each_runner(site):
    tries, tried_twice = [], asyncio.Event()

    async def fragile(batch):
        tries.append((batch.idc, batch.attempt, [batch.idempotency_key(row) for row in batch]))
        if len(tries) == 2:
            tried_twice.set()
        if batch.idc == "fra":
            raise ValueError("not here")
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch])

    await site.put("DE", *site.keys_in("DE", 0, 2))
    made = settle(fragile, retry=Retry(attempts=1000, first_pause=timedelta(milliseconds=10)), kind="long-running")
    async with site.runner("fra", made), site.runner("ams", made):
        await asyncio.wait_for(tried_twice.wait(), 10)
        await site.move("DE", 0, "ams")
        assert await site.entered("settle", 2) == changes("DE/0", seqs=[1, 2])
    assert [attempt for _, attempt, _ in tries[:2]] == [1, 2]
    # What has failed is known to the next owner, too.
    assert tries[-1][:2] == ("ams", len(tries))
    assert {tuple(keys) for _, _, keys in tries} == {("settle/DE/0/1", "settle/DE/0/2")}


async def test_a_handler_that_takes_long_is_told_that_the_run_shall_end_and_may_finish(site):
    begun, told = asyncio.Event(), []

    async def slow(batch):
        begun.set()
        await asyncio.wait_for(batch.stopping.wait(), 10)
        told.append(len(batch))
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch])

    await site.put("DE", *site.keys_in("DE", 0, 2))
    async with site.runner("fra", settle(slow, kind="long-running")):
        await asyncio.wait_for(begun.wait(), 10)
        assert not told
    assert told == [2]
    assert await site.ledger("settle") == changes("DE/0", seqs=[1, 2])


async def test_a_handler_that_does_not_return_is_cut_short_and_the_next_runner_does_its_batch(site):
    begun, recorder = asyncio.Event(), Recorder()

    async def hanging(batch):
        begun.set()
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch])
        await asyncio.Event().wait()

    await site.put("DE", *site.keys_in("DE", 0, 2))
    async with site.runner("fra", settle(hanging, kind="long-running"), drain=0.1):
        await asyncio.wait_for(begun.wait(), 10)
    assert await site.ledger("settle") == []
    async with site.runner("fra", settle(recorder, name="settle-again", kind="long-running")):
        assert await site.entered("settle-again", 2) == changes("DE/0", seqs=[1, 2])
