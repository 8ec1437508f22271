"""What ends, holds up or slows down a run: orders of people, and RegionCodes that do not get on."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from regionjobs.definition import Retry, job
from regionjobs.triggers import Every
from rowstore.jobs import registry
from rowstore.jobs.model import RunResult
from tests.support.job_runner_parts import Recorder, enter
from tests.support.row_databases import until

QUICK = Retry(attempts=3, first_pause=timedelta(milliseconds=10))


def settle(handler, **words):
    """A job over customers in the EU."""
    return job(**{"name": "settle", "dataset": "customers", "regions": ["EU"], "retry": QUICK} | words)(handler)


async def pause(site, by="eve"):
    await registry.pause(site.idcs["fra"].database.fetch, "settle", by)
    await site.ring("fra")


async def resume(site):
    await registry.resume(site.idcs["fra"].database.fetch, "settle")
    await site.ring("fra")


async def says(runner, sentence):
    async def is_said():
        return runner.loops["settle"].sentence == sentence

    await until(is_said, f"{sentence}, but: {runner.loops['settle'].sentence}")


async def test_pausing_ends_a_run_at_the_batch_boundary_and_resuming_goes_on_from_there(site):
    await site.fill("DE", 3)
    recorder = Recorder()

    async def interrupted(batch):
        await recorder(batch)
        if len(recorder.batches) == 1:
            await pause(site)
            await asyncio.wait_for(batch.stopping.wait(), 10)

    async with site.runner("fra", settle(interrupted, batch_size=1, concurrency=1, regions=["DE"])) as runner:
        await site.fire("fra", "settle")
        await says(runner, "is paused by eve")
        (run,) = await site.runs("fra", "settle", 1)
        assert (run.result, run.reason, run.rows) == (RunResult.ENDED, "paused", 1)
        await site.put("DE", *site.keys_in("DE", 1, 1))
        await site.fire("fra", "settle")
        await says(runner, "is paused by eve")
        assert len(await site.ledger("settle")) == 1
        await resume(site)
        await site.finished("fra", "settle", 2)
    assert len(await site.ledger("settle")) == 6


async def test_a_paused_job_starts_nothing_and_its_times_are_for_the_misfire_rule(site):
    recorder = Recorder()
    made = settle(recorder, trigger=Every(seconds=1))
    await site.register("fra", made)
    await pause(site)
    await site.fill("DE", 1)
    async with site.runner("fra", made) as runner:
        await says(runner, "is paused by eve")
        moment = await registry.now(site.idcs["fra"].database.fetch)
        await site.idcs["fra"].hand.execute("UPDATE jobs SET last_scheduled = $1", moment - timedelta(hours=1))
        await runner.schedulers["settle"].look()
        assert await site.idcs["fra"].hand.fetchval("SELECT count(*) FROM job_firings") == 0
        assert recorder.batches == []
        await resume(site)
        await site.finished("fra", "settle", 1)
        assert len(await site.entered("settle", 2)) == 2
        misfires = await site.idcs["fra"].hand.fetchval("SELECT max(misfires) FROM job_firings")
        assert misfires > 900


class Unwell:
    """A handler that does not get on with Germany."""

    def __init__(self, how):
        self.how, self.asked = how, 0

    async def __call__(self, batch):
        if batch.region_code == "DE":
            self.asked += 1
            match self.how:
                case "hangs":
                    await asyncio.Event().wait()
                case "is cut off":
                    raise ConnectionError("no way to Germany")
                case "fails":
                    raise ValueError("nothing of Germany is right")
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch])


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("how", ["is cut off", "fails"])
@pytest.mark.parametrize("kind", ["batch", "long-running"])
async def test_a_region_code_that_fails_holds_up_no_other(site, kind, how, concurrency):
    await site.fill("DE", 3)
    await site.fill("FR", 1)
    handler = Unwell(how)
    patient = Retry(attempts=1000, first_pause=timedelta(milliseconds=10), longest_pause=timedelta(milliseconds=100))
    made = settle(handler, kind=kind, concurrency=concurrency, retry=patient)
    async with site.runner("fra", made):
        for number in range(3):
            if kind == "batch":
                await site.fire("fra", "settle")
            assert await site.entered("settle", number + 1) == [f"FR/0/{seq + 1}" for seq in range(number + 1)]
            await site.put("FR", *site.keys_in("FR", 0, 1))
        assert handler.asked >= 2
        handler.how = "is well"
        await site.entered("settle", 10 if kind == "long-running" else 9)
    entries = await site.ledger("settle")
    assert len(entries) == len(set(entries))


@pytest.mark.parametrize("kind", ["batch", "long-running"])
async def test_a_region_code_that_hangs_holds_up_no_other(site, kind):
    await site.fill("DE", 3)
    await site.fill("FR", 1)
    made = settle(Unwell("hangs"), kind=kind, concurrency=3, timeout=timedelta(seconds=30))
    async with site.runner("fra", made, drain=0.2):
        for number in range(3):
            if kind == "batch":
                await site.fire("fra", "settle")
            assert await site.entered("settle", number + 1) == [f"FR/0/{seq + 1}" for seq in range(number + 1)]
            await site.put("FR", *site.keys_in("FR", 0, 1))
