"""When jobs make their passes: by time, by hand, after one another; and what becomes of times that nobody saw."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from regionjobs.definition import job
from regionjobs.triggers import After, At, Cron, Every
from rowstore.jobs import registry
from rowstore.jobs.model import RunResult
from tests.support.job_runner_parts import Recorder
from tests.support.row_databases import until


def timed(trigger, recorder=None, **words):
    """A job over customers in Germany."""
    return job(**{"name": "timed", "dataset": "customers", "regions": ["DE"], "trigger": trigger} | words)(
        recorder or Recorder()
    )


async def firings(site, name="timed", idc="fra"):
    """Time, origin and misfires of each firing, oldest first."""
    return await site.idcs[idc].hand.fetch(
        "SELECT scheduled_time, origin, misfires, end_time FROM job_firings WHERE job = $1 ORDER BY scheduled_time",
        name,
    )


async def now(site):
    return await registry.now(site.idcs["fra"].database.fetch)


async def ago(site, **words):
    """Lets the job's schedule have been decided so long ago, as if no runner had been there since."""
    moment = await now(site) - timedelta(**words)
    await site.idcs["fra"].hand.execute("UPDATE jobs SET last_scheduled = $1, create_time = $1", moment)


async def test_every_time_of_a_schedule_is_fired_once_whatever_the_number_of_runners(site):
    await site.fill("DE", 2)
    recorder = Recorder()
    made = timed(Every(seconds=1), recorder, misfire="run all")
    async with AsyncExitStack() as stack:
        for name in ("one", "two", "three"):
            await stack.enter_async_context(site.runner("fra", made, name=name))
        times = await site.finished("fra", "timed", 2)
    assert len(times) == len(set(times)) >= 2
    assert all(time.microsecond == 0 for time in times)
    assert {later - sooner for sooner, later in pairwise(times)} == {timedelta(seconds=1)}
    assert {(record["origin"], record["misfires"]) for record in await firings(site)} == {("schedule", 0)}
    # The second pass had nothing to do.
    assert sorted(recorder.changes) == ["DE/0/1", "DE/0/2", "DE/1/1", "DE/1/2"]
    assert await site.ledger("timed") == sorted(recorder.changes)


@pytest.mark.parametrize(
    ("rule", "fired", "misfires"), [("run once", [5], 5), ("run all", [0, 1, 2, 3, 4, 5], 0), ("skip", [], 6)]
)
async def test_times_that_passed_while_no_runner_was_there_are_for_the_misfire_rule(site, rule, fired, misfires):
    moment = await now(site)
    passed = [moment - timedelta(hours=hours) for hours in range(6, 0, -1)]
    upcoming = moment + timedelta(hours=1)
    made = timed(At(*passed, upcoming), misfire=rule)
    await site.fill("DE", 1)
    await site.register("fra", made)
    await ago(site, hours=7)
    async with site.runner("fra", made), site.runner("fra", made, name="another"):
        times = await site.finished("fra", "timed", len(fired))

        async def is_decided():
            record = await registry.get(site.idcs["fra"].database.fetch, "timed")
            return (record.last_scheduled, record.next_scheduled) == (passed[-1], upcoming)

        await until(is_decided, "all times are decided")
        # Passes for later times find nothing, and are over without a run.
        made_for = {run.scheduled_time for run in await site.runs("fra", "timed", len(times[:1]))}
    assert times == [passed[index] for index in fired]
    assert made_for == set(times[:1])
    found = await firings(site)
    assert all(record["origin"] == "schedule" for record in found)
    assert not found or {record["misfires"] for record in found} == {misfires}
    assert await site.ledger("timed") == (["DE/0/1", "DE/1/1"] if fired else [])


async def test_a_cron_and_a_list_of_times_fire_by_the_clock_of_the_database(site):
    moment = await now(site)
    soon = moment + timedelta(milliseconds=700)
    by_list = timed(At(moment - timedelta(days=1), soon, moment + timedelta(days=1)), name="by-list")
    by_cron = timed(Cron("30 3 * * *", "Asia/Shanghai"), name="by-cron", misfire="run all")
    jobs = [by_list, by_cron]
    for made in jobs:
        await site.register("fra", made)
    await site.idcs["fra"].hand.execute(
        "UPDATE jobs SET last_scheduled = $1 WHERE job = 'by-cron'", moment - timedelta(days=3)
    )
    async with site.runner("fra", *jobs):
        assert await site.finished("fra", "by-list", 1) == [soon]
        nightly = await site.finished("fra", "by-cron", 3)
        record = await registry.get(site.idcs["fra"].database.fetch, "by-list")
    assert len(nightly) == 3
    assert {(time.hour, time.minute) for time in nightly} == {(19, 30)}
    # A time before the job was known is nobody's.
    assert (record.last_scheduled, record.next_scheduled) == (soon, moment + timedelta(days=1))


async def test_the_first_time_is_shown_before_it_comes(site):
    made = timed(At(datetime(2100, 1, 1, tzinfo=UTC)))
    async with site.runner("fra", made):

        async def is_shown():
            record = await registry.get(site.idcs["fra"].database.fetch, "timed")
            return record is not None and record.next_scheduled == datetime(2100, 1, 1, tzinfo=UTC)

        await until(is_shown, "the next time is shown")
    assert await firings(site) == []


async def test_jobs_follow_one_another_in_one_idc(site):
    await site.fill("DE", 2)
    order = []

    def noting(name):
        async def note(batch):
            order.append(name)

        return note

    extract = job(name="extract", dataset="customers", regions=["DE"])(noting("extract"))
    transform = job(name="transform", dataset="customers", regions=["DE"], trigger=After("extract"))(
        noting("transform")
    )
    load = job(name="load", dataset="customers", regions=["DE"], trigger=After("transform"))(noting("load"))
    jobs = [load, transform, extract]
    async with site.runner("fra", *jobs), site.runner("fra", *jobs, name="another"), site.runner("ams", *jobs):
        for one in jobs:
            await site.finished("fra", one.name, 0)
            await site.register("fra", one)
        await site.passed("fra", "extract")
        await site.finished("fra", "load", 1)
        assert order == ["extract"] * 2 + ["transform"] * 2 + ["load"] * 2
        await site.passed("fra", "extract")
        await site.finished("fra", "load", 2)
    # Without new rows there are passes, but no batches.
    assert len(order) == 6
    for name, origin in (("extract", "manual"), ("transform", "after extract"), ("load", "after transform")):
        assert [record["origin"] for record in await firings(site, name)] == [origin] * 2
        assert await firings(site, name, "ams") == []


async def test_a_pass_is_in_the_history_with_what_it_did(site):
    await site.fill("DE", 3)
    made = timed(Every(days=30), batch_size=2)
    async with site.runner("fra", made) as runner:
        time = await site.fire("fra", "timed")
        await site.finished("fra", "timed", 1)
        (run,) = await site.runs("fra", "timed", 1)
        assert (run.runner, run.policy_revision) == (runner.name, 1)
    assert (run.job, run.shards, run.rows, run.batches, run.failures, run.set_aside) == ("timed", 2, 6, 4, 0, 0)
    assert (run.result, run.reason, run.scheduled_time) == (RunResult.DONE, "", time)
    assert time < run.start_time < run.end_time < time + timedelta(seconds=30)
    assert [(record["origin"], record["end_time"] is not None) for record in await firings(site)] == [("manual", True)]


async def test_a_firing_waits_for_the_pass_of_every_runner(site):
    """Both shards are handled by whoever has them, and the pass is over when both are."""
    await site.fill("DE", 1)
    await site.fill("FR", 1)
    recorder = Recorder()
    made = timed(Every(days=30), recorder, regions=[], concurrency=1)
    async with AsyncExitStack() as stack:
        for name in ("one", "two", "three"):
            await stack.enter_async_context(site.runner("fra", made, name=name))
        await site.passed("fra", "timed")
        assert sorted(recorder.changes) == ["DE/0/1", "DE/1/1", "FR/0/1"]
        assert len(await firings(site)) == 1
