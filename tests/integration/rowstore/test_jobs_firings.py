"""Firings: each scheduled time once, whoever notices it; passes over all that is served; and what comes after."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from policy.errors import ClaimLost
from rowstore.jobs import firings, offsets, registry
from rowstore.jobs.model import Advance
from rowstore.model import ShardEpoch
from tests.support.job_stores import JOB, change, register, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rowstore.jobs.offsets import Fetch
    from tests.support.row_databases import RowDatabase

HOUR = timedelta(hours=1)


@pytest.fixture
async def home(idc: RowDatabase) -> AsyncIterator[RowDatabase]:
    """An IDC that knows the job, with changes in shards 0 and 1 of four."""
    await register(idc)
    await change(idc, "a", "b")
    await change(idc, "c", shard=1)
    return idc


async def pending(idc: RowDatabase, firing: datetime | None = None, **how: object) -> list[int]:
    """Numbers of the shards with work."""
    fields = {"is_global": False, **how}
    found = await offsets.pending(idc.database.fetch, JOB, ["DE", "FR"], firing=firing, **fields)
    return [shard.shard for shard in found]


async def make_pass(idc: RowDatabase, shard: int, firing: datetime, *, epoch: int = 1) -> None:
    """All of a shard, for a firing."""
    held = await take(idc, shard=shard, epoch=epoch)
    await offsets.advance(idc.database.fetch, JOB, held, Advance(held.last_seq, pass_time=firing, after=held.seq))


async def fire(idc: RowDatabase) -> datetime:
    time = await firings.trigger(idc.database.fetch, JOB, "manual")
    assert time is not None
    return time


async def finish(
    fetch: Fetch, firing: datetime, *, job: str = JOB, regions: tuple[str, ...] = ("DE", "FR"), is_global: bool = False
) -> tuple[bool, list[str]]:
    return await firings.finish(fetch, job, firing, regions, is_global=is_global)


# ---- which shards have work ----


async def test_a_shard_has_work_while_it_has_changes_that_were_not_handled(home: RowDatabase) -> None:
    assert await pending(home) == [0, 1]
    (first, _) = await offsets.pending(home.database.fetch, JOB, ["DE"], firing=None, is_global=False)
    assert first == ("DE", 0, 1, 2, 0)
    held = await take(home)
    assert await pending(home) == [0, 1], "a claim alone handles nothing"
    await offsets.advance(home.database.fetch, JOB, held, Advance(1))
    assert await pending(home) == [0, 1]
    await offsets.advance(home.database.fetch, JOB, held, Advance(2))
    assert await pending(home) == [1]
    await change(home, "d")
    assert await pending(home) == [0, 1]
    assert await offsets.pending(home.database.fetch, "other", ["DE"], firing=None, is_global=False) != []
    assert await offsets.pending(home.database.fetch, JOB, ["FR"], firing=None, is_global=False) == []
    assert await offsets.pending(home.database.fetch, JOB, [], firing=None, is_global=False) == []


async def test_only_shards_in_the_modes_asked_for_have_work_and_none_where_the_job_has_stopped(
    home: RowDatabase,
) -> None:
    held = await take(home)
    await home.set_fence(1, mode="draining")
    assert await pending(home) == [0]
    assert await pending(home, modes=("serving", "draining")) == [0, 1]
    await home.set_fence(1, mode="closed")
    assert await pending(home, modes=("serving", "draining")) == [0]
    await offsets.stop_at(home.database.fetch, JOB, held)
    assert await pending(home) == []


async def test_a_pass_counts_for_its_firing_and_those_before_and_only_at_its_epoch(home: RowDatabase) -> None:
    first = await fire(home)
    second = await fire(home)
    await make_pass(home, 0, first)
    # There is something new in both.
    await change(home, "d")
    assert await pending(home, first) == [1]
    assert await pending(home, second) == [0, 1]
    await make_pass(home, 0, second)
    await change(home, "e")
    assert await pending(home, first) == await pending(home, second) == [1]
    # As if it had been away: the pass was made under another owner's clock.
    await home.set_fence(0, epoch=3)
    assert await pending(home, first) == await pending(home, second) == [0, 1]


async def test_each_shard_of_a_global_scan_has_work_until_its_pass_is_made(home: RowDatabase) -> None:
    assert await pending(home, is_global=True) == [0, 1, 2, 3]
    firing = await fire(home)
    await make_pass(home, 3, firing)
    assert await pending(home, firing, is_global=True) == [0, 1, 2]


# ---- the end of a firing ----


async def test_a_firing_ends_once_when_no_shard_lacks_its_pass(home: RowDatabase) -> None:
    fetch, firing = home.database.fetch, await fire(home)
    assert await finish(fetch, firing) == (False, [])
    await make_pass(home, 0, firing)
    assert await finish(fetch, firing) == (False, [])
    await make_pass(home, 1, firing)
    ends = await asyncio.gather(*(finish(fetch, firing) for _ in range(8)))
    assert sum(is_ended for is_ended, _ in ends) == 1
    assert await firings.open_firings(fetch, JOB) == []
    assert await home.hand.fetchval("SELECT end_time >= create_time FROM job_firings")


@pytest.mark.parametrize("mode", ["serving", "draining"])
async def test_what_is_draining_may_come_back_and_holds_a_firing_open(home: RowDatabase, mode: str) -> None:
    firing = await fire(home)
    await make_pass(home, 0, firing)
    await home.set_fence(1, mode=mode)
    assert await finish(home.database.fetch, firing) == (False, [])
    await home.set_fence(1, mode="closed")
    assert await finish(home.database.fetch, firing) == (True, [])


async def test_a_shard_where_the_job_has_stopped_holds_no_firing_open(home: RowDatabase) -> None:
    firing = await fire(home)
    await make_pass(home, 0, firing)
    await offsets.stop_at(home.database.fetch, JOB, await take(home, shard=1))
    assert await finish(home.database.fetch, firing) == (True, [])


async def test_a_firing_of_a_global_scan_ends_when_every_shard_has_had_its_pass(home: RowDatabase) -> None:
    firing = await fire(home)
    for shard in range(4):
        assert await finish(home.database.fetch, firing, is_global=True) == (False, [])
        await make_pass(home, shard, firing)
    assert await finish(home.database.fetch, firing, is_global=True) == (True, [])


async def test_jobs_that_come_after_are_fired_once_by_the_end(home: RowDatabase) -> None:
    fetch = home.database.fetch
    for name in ("second", "third"):
        await register(home, name, definition='{"after": "settle"}')
    await register(home, "fourth", definition='{"after": "second"}')
    traceparent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    firing = await firings.trigger(fetch, JOB, "manual", traceparent)
    assert firing is not None
    assert (await finish(fetch, firing))[1] == []
    for shard in (0, 1):
        await make_pass(home, shard, firing)
    ends = await asyncio.gather(*(finish(fetch, firing) for _ in range(4)))
    assert sorted(job for _, followed in ends for job in followed) == ["second", "third"]
    (fired,) = await firings.open_firings(fetch, "second")
    assert (fired.origin, fired.traceparent, fired.misfires) == ("after settle", traceparent, 0)
    assert await firings.open_firings(fetch, "fourth") == []


async def test_a_pass_that_was_made_since_does_not_stand_for_one_that_comes_after(home: RowDatabase) -> None:
    fetch = home.database.fetch
    await register(home, "second", definition='{"after": "settle"}')
    firing = await fire(home)
    # While the first job is at work, somebody fires the second one, and it makes a pass.
    early = await firings.trigger(fetch, "second", "manual")
    for shard in (0, 1):
        held = await take(home, shard=shard, job="second")
        await offsets.advance(fetch, "second", held, Advance(held.last_seq, pass_time=early))
        await make_pass(home, shard, firing)
    await change(home, "led-to")
    await make_pass(home, 0, firing)
    assert await finish(fetch, firing) == (True, ["second"])
    after = (await firings.open_firings(fetch, "second"))[-1]
    found = await offsets.pending(fetch, "second", ["DE"], firing=after.scheduled_time, is_global=False)
    assert [shard.shard for shard in found] == [0]


# ---- the schedule ----


async def test_two_runners_an_hour_apart_decide_a_time_once(home: RowDatabase) -> None:
    """Each has read what was decided last, and what the time is, at the database; one of them comes first."""
    now = await registry.now(home.database.fetch)
    known = now - HOUR
    await home.hand.execute("UPDATE jobs SET last_scheduled = $1", known)

    async def decide(through: datetime) -> bool:
        return await firings.schedule(
            home.database.fetch, JOB, known=known, through=through, times=[through], upcoming=through + HOUR
        )

    # The clock of one is an hour ahead: had it gone by it, it would have decided times that have not come.
    decided = await asyncio.gather(*(decide(now + shift) for shift in (timedelta(), HOUR) * 6))
    assert sum(decided) == 1
    (firing,) = await firings.open_firings(home.database.fetch, JOB)
    record = await registry.get(home.database.fetch, JOB)
    assert record is not None
    assert record.last_scheduled == firing.scheduled_time
    assert record.next_scheduled == firing.scheduled_time + HOUR
    assert firing.origin == "schedule"


async def test_whoever_decides_by_an_old_view_changes_nothing(home: RowDatabase) -> None:
    fetch, now = home.database.fetch, await registry.now(home.database.fetch)
    assert await firings.schedule(fetch, JOB, known=None, through=now, times=[now])
    for known in (None, now - HOUR, now + HOUR):
        assert not await firings.schedule(fetch, JOB, known=known, through=now + HOUR, times=[now + HOUR])
    assert not await firings.schedule(fetch, "unknown", known=None, through=now, times=[now])
    assert len(await firings.open_firings(fetch, JOB)) == 1
    assert await home.hand.fetchval("SELECT count(*) FROM job_firings") == 1


async def test_misfires_are_counted_and_run_oldest_first_or_passed_over(home: RowDatabase) -> None:
    fetch, now = home.database.fetch, await registry.now(home.database.fetch)
    times = [now - HOUR * back for back in (1, 3, 2)]
    assert await firings.schedule(fetch, JOB, known=None, through=times[0], times=times, misfires=2)
    fired = await firings.open_firings(fetch, JOB)
    assert [firing.scheduled_time for firing in fired] == sorted(times)
    assert {firing.misfires for firing in fired} == {2}
    # All of them passed over: it is noted that they were decided.
    assert await firings.schedule(fetch, JOB, known=times[0], through=now, times=[], misfires=7)
    assert len(await firings.open_firings(fetch, JOB)) == 3
    record = await registry.get(fetch, JOB)
    assert record is not None
    assert (record.last_scheduled, record.next_scheduled) == (now, None)


async def test_only_a_batch_job_that_is_known_is_fired_by_hand(home: RowDatabase) -> None:
    fetch = home.database.fetch
    await register(home, "ever", kind="long-running")
    assert await firings.trigger(fetch, "ever", "manual") is None
    assert await firings.trigger(fetch, "unknown", "manual") is None
    times = [await fire(home) for _ in range(3)]
    assert [firing.scheduled_time for firing in await firings.open_firings(fetch, JOB)] == sorted(set(times))


async def test_the_oldest_ended_firings_are_forgotten_and_open_ones_are_not(home: RowDatabase) -> None:
    fetch, number = home.database.fetch, firings.KEPT + 50
    await home.hand.execute(
        "INSERT INTO job_firings (job, scheduled_time, origin, end_time) SELECT $1, now() - make_interval(mins => i),"
        " 'schedule', CASE WHEN i NOT IN (7, $2) THEN now() END FROM generate_series(1, $2::int) AS i",
        JOB,
        number,
    )
    await firings.prune(fetch, "other")
    assert await home.hand.fetchval("SELECT count(*) FROM job_firings") == number
    await firings.prune(fetch, JOB)
    left = await home.hand.fetchrow("SELECT count(*), count(*) FILTER (WHERE end_time IS NULL) FROM job_firings")
    # The newest, and beyond them the oldest of all, which is open.
    assert tuple(left) == (firings.KEPT + 1, 2)


async def test_nothing_is_lost_or_fired_twice_when_many_do_everything_at_once(home: RowDatabase) -> None:
    fetch = home.database.fetch
    await register(home, "second", definition='{"after": "settle"}')
    firing = await fire(home)

    async def work() -> list[str]:
        for shard in await offsets.pending(fetch, JOB, ["DE"], firing=firing, is_global=False):
            claims = await offsets.claim(fetch, JOB, "r.1", [ShardEpoch(*shard[:3])])
            for held in claims:
                # Another may have taken it meanwhile.
                with contextlib.suppress(ClaimLost):
                    await offsets.advance(fetch, JOB, held, Advance(held.last_seq, pass_time=firing, after=held.seq))
        return (await finish(fetch, firing))[1]

    followed: list[str] = []
    async with asyncio.timeout(20):
        while not followed:
            followed = [job for jobs in await asyncio.gather(*(work() for _ in range(6))) for job in jobs]
    assert followed == ["second"]
    assert len(await firings.open_firings(fetch, "second")) == 1
