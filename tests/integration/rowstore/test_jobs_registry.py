"""What people see of jobs, and what they order: known jobs, runs, rows set aside, and how far everything is."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from policy.errors import ClaimLost, JobConflict
from rowstore.jobs import offsets, registry, runs
from rowstore.jobs.model import Advance, RunRecord, RunResult, SetAside
from tests.support.job_stores import JOB, LEDGER, change, connected, enter, job_record, ledger, register, take
from tests.support.row_databases import ORDERS, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rowstore.jobs.model import Claim, JobStatus
    from tests.support.row_databases import RowDatabase


@pytest.fixture
async def home(idc: RowDatabase) -> AsyncIterator[RowDatabase]:
    """An IDC that knows the job, with three changes in shard 0."""
    await idc.hand.execute(LEDGER)
    await register(idc)
    await change(idc, "a", "b", "c")
    return idc


async def status(idc: RowDatabase, job: str = JOB) -> JobStatus:
    record = await registry.get(idc.database.fetch, job)
    assert record is not None
    return await registry.status(idc.database.fetch, record, ["DE"])


# ---- definitions ----


async def test_a_job_is_known_from_its_first_run_and_its_definition_is_kept_up_to_date(idc: RowDatabase) -> None:
    fetch = idc.database.fetch
    assert await registry.get(fetch, JOB) is None
    first = await register(idc)
    assert (first.definition, first.is_paused, first.last_scheduled) == ("{}", False, None)
    assert await registry.pause(fetch, JOB, "ada")
    second = await register(idc, definition='{"rate": 5}')
    assert (second.definition, second.is_paused, second.create_time) == ('{"rate": 5}', True, first.create_time)
    assert await registry.get(fetch, JOB) == second
    await register(idc, "another")
    assert [record.job for record in await registry.list_jobs(fetch)] == ["another", JOB]
    assert [record.job for record in await registry.list_jobs(fetch, JOB)] == [JOB]
    assert await registry.list_jobs(fetch, "unknown") == []


@pytest.mark.parametrize("changed", [{"dataset": "orders"}, {"scan": "global"}, {"kind": "long-running"}])
async def test_a_name_that_stands_for_another_scan_is_refused_and_nothing_changes(
    home: RowDatabase, changed: dict[str, str]
) -> None:
    before = await registry.get(home.database.fetch, JOB)
    with pytest.raises(JobConflict, match=f"job {JOB} is known here") as caught:
        await register(home, definition='{"new": 1}', **changed)
    assert caught.value.field_name == "name"
    assert await registry.get(home.database.fetch, JOB) == before


async def test_runners_that_start_at_once_register_one_job(idc: RowDatabase) -> None:
    records = await asyncio.gather(*(register(idc) for _ in range(8)))
    assert len({record.create_time for record in records}) == 1


async def test_pausing_says_who_and_resuming_forgets_it(home: RowDatabase) -> None:
    fetch = home.database.fetch
    assert not await registry.pause(fetch, "unknown", "ada")
    assert not await registry.resume(fetch, "unknown")
    assert await registry.pause(fetch, JOB, "ada")
    paused = await registry.get(fetch, JOB)
    assert paused is not None
    assert (paused.is_paused, paused.paused_by) == (True, "ada")
    assert await registry.resume(fetch, JOB)
    resumed = await registry.get(fetch, JOB)
    assert resumed is not None
    assert (resumed.is_paused, resumed.paused_by) == (False, "")


async def test_resuming_lets_a_stopped_shard_go_on_where_this_idc_serves_it(home: RowDatabase) -> None:
    fetch = home.database.fetch
    for shard in range(4):
        held = await take(home, shard=shard)
        await offsets.note_failure(fetch, JOB, held, "ValueError")
        await offsets.stop_at(fetch, JOB, held)
    await take(home, job="other")
    await home.set_fence(1, mode="draining")
    await home.set_fence(2, mode="closed")
    await home.set_fence(3, mode="importing")
    assert (await status(home)).shards_stopped == 2
    assert await registry.resume(fetch, JOB)
    records = await home.hand.fetch(
        "SELECT is_stopped, failures FROM job_offsets WHERE job = $1 ORDER BY region_code, shard", JOB
    )
    assert [tuple(record) for record in records] == [(False, 0), (False, 0), (True, 1), (True, 1)]
    assert (await status(home)).shards_stopped == 0


async def test_resuming_waits_for_a_fence_and_leaves_alone_what_closes_meanwhile(home: RowDatabase) -> None:
    await offsets.stop_at(home.database.fetch, JOB, await take(home))
    async with home.holding_fence() as connection:
        resuming = asyncio.create_task(registry.resume(home.database.fetch, JOB))
        await home.until_waiting(1)
        await connection.execute("UPDATE shard_fences SET mode = 'closed' WHERE shard = 0")
    assert await resuming
    assert await home.hand.fetchval("SELECT is_stopped FROM job_offsets")


# ---- rows that were set aside ----


def aside(held: Claim, seq: int, key: str, **fields: object) -> SetAside:
    return SetAside(
        held.region_code, held.shard, seq, key, **{"attempts": 5, "error_class": "E", "error": "e"} | fields
    )


async def put_aside(idc: RowDatabase, held: Claim, row: SetAside, *, after: int | None = None) -> None:
    """As a runner does: together with the offset that moves past it."""
    async with connected(idc) as connection, connection.transaction():
        await offsets.set_aside(connection.fetch, JOB, row)
        await offsets.advance(connection.fetch, JOB, held, Advance(row.seq, after=after))


async def test_a_row_is_set_aside_together_with_the_offset_that_moves_past_it_or_not_at_all(home: RowDatabase) -> None:
    held = await take(home)
    await put_aside(home, held, aside(held, 1, "a", error="bad a"))
    await put_aside(home, held, aside(held, 2, "b"))
    old, held = held, await take(home, "two.1")
    with pytest.raises(ClaimLost):
        await put_aside(home, old, aside(old, 3, "c"))
    rows, total = await registry.set_aside_rows(home.database.fetch, JOB, "DE", 1)
    assert total == 2
    (row,) = rows
    assert (row.seq, row.key, row.attempts, row.error_class, row.error) == (1, "a", 5, "E", "bad a")
    assert row.set_aside_time is not None
    assert not row.is_replay_wanted
    assert await registry.set_aside_rows(home.database.fetch, JOB, "FR", 9) == ([], 0)
    assert (await registry.set_aside_rows(home.database.fetch, JOB, "", 9))[1] == 2
    assert (await status(home)).set_aside == 2


async def test_a_row_that_fails_again_is_counted_on_and_waits_for_the_next_order(home: RowDatabase) -> None:
    fetch, held = home.database.fetch, await take(home)
    await put_aside(home, held, aside(held, 1, "a"))
    assert await registry.replay(fetch, JOB, "") == 1
    await put_aside(home, held, aside(held, 1, "a", attempts=2, error_class="Worse", error="w"))
    ((row,), _) = await registry.set_aside_rows(fetch, JOB, "", 9)
    assert (row.attempts, row.error_class, row.error, row.is_replay_wanted) == (7, "Worse", "w", False)


async def test_law_l5_a_replay_is_done_once(home: RowDatabase) -> None:
    fetch, held = home.database.fetch, await take(home)
    for seq, key in ((1, "a"), (2, "b"), (3, "c")):
        await put_aside(home, held, aside(held, seq, key))
    assert await offsets.replays_wanted(fetch, JOB, ["DE"]) == []
    assert await registry.replay(fetch, JOB, "FR") == 0
    assert await registry.replay(fetch, "other", "") == 0
    assert await registry.replay(fetch, JOB, "DE") == 3
    (shard,) = await offsets.replays_wanted(fetch, JOB, ["DE", "FR"])
    assert (shard.region_code, shard.shard, shard.epoch, shard.seq) == ("DE", 0, 1, 3)
    assert await offsets.replays_wanted(fetch, JOB, ["FR"]) == []
    rows = await offsets.replays(fetch, JOB, held, 2)
    assert [row.key for row in rows] == ["a", "b"]
    other = await take(home, shard=1)
    assert await offsets.replays_among(fetch, JOB, [other, held], 2) == rows
    assert await offsets.replays_among(fetch, JOB, [other], 2) == []

    async def replay(row: SetAside) -> None:
        async with connected(home) as connection, connection.transaction():
            await enter(connection, held, [row.seq])
            await offsets.forget_set_aside(connection.fetch, JOB, [row])
            await offsets.advance(connection.fetch, JOB, held, Advance(3, rows=1))

    await replay(rows[0])
    # Its answer was lost, and it is tried again under the same claim.
    with pytest.raises(ClaimLost):
        await replay(rows[0])
    assert await ledger(home) == [1]
    assert [row.key for row in await offsets.replays(fetch, JOB, held, 9)] == ["b", "c"]


async def test_what_was_set_aside_is_not_touched_or_shown_where_its_shard_has_left(home: RowDatabase) -> None:
    fetch, held = home.database.fetch, await take(home)
    await put_aside(home, held, aside(held, 1, "a"))
    for mode in ("closed", "importing"):
        await home.set_fence(mode=mode)
        assert await registry.replay(fetch, JOB, "") == 0
        assert await registry.set_aside_rows(fetch, JOB, "", 9) == ([], 0)
        assert (await status(home)).set_aside == 0
    await home.set_fence(mode="draining")
    assert await registry.replay(fetch, JOB, "") == 1
    # Nobody is sent there to do it while the shard is leaving.
    assert await offsets.replays_wanted(fetch, JOB, ["DE"]) == []
    await home.hand.execute("UPDATE job_offsets SET token = token + 1, runner = ''")
    with pytest.raises(ClaimLost):
        await offsets.forget_set_aside(fetch, JOB, [aside(held, 1, "a")])
    assert await home.hand.fetchval("SELECT count(*) FROM job_set_aside") == 1


async def test_an_order_to_replay_passes_over_a_row_that_is_being_dealt_with(home: RowDatabase) -> None:
    fetch, held = home.database.fetch, await take(home)
    for seq, key in ((1, "a"), (2, "b")):
        await put_aside(home, held, aside(held, seq, key))
    async with connected(home) as connection, connection.transaction():
        await offsets.forget_set_aside(connection.fetch, JOB, [aside(held, 1, "a")])
        assert await registry.replay(fetch, JOB, "") == 1


# ---- how everything stands ----


async def test_lag_is_what_was_not_handled_and_how_long_the_oldest_of_it_waits(home: RowDatabase) -> None:
    fetch = home.database.fetch
    await change(home, "d", shard=1)
    minutes = "UPDATE rows_customers SET update_time = clock_timestamp() - make_interval(mins => 10 - seq::int)"
    await home.hand.execute(minutes)
    before = await status(home)
    assert (before.shards, before.shards_behind, before.lag_rows, before.rows) == (4, 2, 4, 0)
    assert before.lag_seconds == pytest.approx(540, abs=20)
    assert before.last_success is None
    held = await take(home, "one.1")
    await offsets.advance(fetch, JOB, held, Advance(2, rows=2))
    states = await registry.offsets(fetch, job_record(), ["DE"])
    assert [state.shard for state in states] == [0, 1, 2, 3]
    first = states[0]
    assert (first.epoch, first.seq, first.last_seq, first.token, first.runner, first.rows) == (1, 2, 3, 1, "one.1", 2)
    assert first.lag_seconds == pytest.approx(420, abs=20)
    assert first.last_success is not None
    assert (states[1].token, states[1].runner, states[2].lag_seconds) == (0, "", 0)
    await offsets.advance(fetch, JOB, held, Advance(3, rows=1))
    after = await status(home)
    assert (after.shards_behind, after.lag_rows, after.rows) == (1, 1, 3)
    assert after.last_success is not None
    await home.set_fence(1, mode="closed")
    gone = await status(home)
    assert (gone.shards, gone.shards_behind, gone.lag_seconds) == (3, 0, 0)


async def test_a_row_of_a_clock_that_is_ahead_lags_too(home: RowDatabase) -> None:
    await home.hand.execute("UPDATE rows_customers SET update_time = clock_timestamp() + interval '1 hour'")
    found = await status(home)
    assert (found.shards_behind, found.lag_rows) == (1, 3)
    assert 0 < found.lag_seconds < 1


async def test_changes_of_another_dataset_are_no_lag(home: RowDatabase) -> None:
    await home.store.write(ORDERS, [put(1, {"order": "x"}, shard=1)])
    assert (await status(home)).shards_behind == 1
    record = await register(home, "global", scan="global", dataset="")
    assert (await registry.status(home.database.fetch, record, ["DE"])).lag_seconds == 0


async def test_status_sees_only_the_regions_that_it_is_asked_for(home: RowDatabase) -> None:
    assert (await registry.status(home.database.fetch, job_record(), ["FR"])).shards == 0
    assert (await registry.status(home.database.fetch, job_record(), [])).lag_rows == 0


# ---- the history of runs ----


def run(number: int, runner: str = "one.1", **fields: object) -> RunRecord:
    known = {"policy_revision": 3, "shards": 4, "result": RunResult.RUNNING}
    return RunRecord(f"run-{number}", JOB, runner, **known | fields)


async def test_a_run_is_told_of_from_its_beginning_to_its_end(home: RowDatabase) -> None:
    fetch, now = home.database.fetch, await registry.now(home.database.fetch)
    await runs.start(fetch, run(1, scheduled_time=now, traceparent="t"))
    (begun,) = await runs.newest(fetch, JOB, 9)
    assert (begun.result, begun.end_time, begun.scheduled_time, begun.traceparent) == (
        RunResult.RUNNING,
        None,
        now,
        "t",
    )
    await runs.tell(fetch, run(1, rows=5, batches=1))
    (going_on,) = await runs.newest(fetch, JOB, 9)
    assert (going_on.rows, going_on.end_time) == (5, None)
    await runs.tell(fetch, run(1, rows=9, batches=2, failures=1, set_aside=1, result=RunResult.ENDED, reason="moved"))
    (ended,) = await runs.newest(fetch, JOB, 9)
    assert ended.end_time is not None
    assert ended.start_time == begun.start_time
    told = ended.rows, ended.batches, ended.failures, ended.set_aside, ended.result, ended.reason
    assert told == (9, 2, 1, 1, RunResult.ENDED, "moved")


async def test_runs_of_runners_that_are_gone_are_lost_unless_they_have_just_begun(home: RowDatabase) -> None:
    fetch = home.database.fetch
    for number, runner in ((1, "gone.1"), (2, "live.1"), (3, "gone.1")):
        await runs.start(fetch, run(number, runner))
    await runs.tell(fetch, run(3, "gone.1", result=RunResult.DONE))
    # A runner that nobody has seen yet may have begun it.
    assert await runs.lose(fetch, JOB, ["live.1"]) == []
    await home.hand.execute("UPDATE job_runs SET start_time = start_time - interval '6 s'")
    assert await runs.lose(fetch, "other", []) == []
    assert await runs.lose(fetch, JOB, ["live.1"]) == ["run-1"]
    assert await runs.lose(fetch, JOB, ["live.1"]) == []
    results = {record.run: (record.result, record.reason) for record in await runs.newest(fetch, JOB, 9)}
    assert results["run-1"] == (RunResult.LOST, "the runner is gone")
    assert results["run-2"][0] is RunResult.RUNNING
    assert results["run-3"][0] is RunResult.DONE
    # It was only paused, and knows better.
    await runs.tell(fetch, run(1, "gone.1", rows=2, result=RunResult.DONE, reason="all done"))
    assert (await runs.newest(fetch, JOB, 1))[0].run == "run-3"
    assert {(record.run, record.result) for record in await runs.newest(fetch, JOB, 9)} >= {("run-1", RunResult.DONE)}
    assert await runs.lose(fetch, JOB, []) == ["run-2"]


async def test_the_newest_runs_are_kept_and_what_runs_is_never_forgotten(home: RowDatabase) -> None:
    fetch = home.database.fetch
    await home.hand.execute(
        "INSERT INTO job_runs (run, job, runner, policy_revision, shards, result, start_time) SELECT 'run-' || i, $1,"
        " 'one.1', 1, 1, CASE WHEN i = $2 THEN 'running' ELSE 'done' END, now() - make_interval(mins => i)"
        " FROM generate_series(1, $2::int) AS i",
        JOB,
        runs.KEPT + 20,
    )
    await runs.prune(fetch, "other")
    await runs.prune(fetch, JOB)
    kept = await runs.newest(fetch, JOB, 2000)
    assert [record.run for record in kept[:3]] == ["run-1", "run-2", "run-3"]
    assert len(kept) == runs.KEPT + 1
    assert kept[-1].run == f"run-{runs.KEPT + 20}"


async def test_the_rate_is_that_of_the_last_minute_over_all_runners(home: RowDatabase) -> None:
    async def rate() -> float:
        return (await status(home)).rows_per_second

    assert await rate() == 0
    insert = (
        "INSERT INTO job_runs (run, job, runner, policy_revision, shards, result, rows, start_time, end_time)"
        " SELECT $1, $2, 'r', 1, 1, 'done', $3, now() - $4::interval, now() - $5::interval"
    )
    # Half of a run of two minutes lies in the last one; another runner was at work beside it.
    await home.hand.execute(insert, "a", JOB, 1200, timedelta(seconds=120), timedelta(0))
    assert await rate() == pytest.approx(10, rel=0.1)
    await home.hand.execute(insert, "b", JOB, 600, timedelta(seconds=60), timedelta(0))
    assert await rate() == pytest.approx(20, rel=0.1)
    await home.hand.execute(insert, "old", JOB, 10**6, timedelta(seconds=300), timedelta(seconds=200))
    assert await rate() == pytest.approx(20, rel=0.1)
    await home.hand.execute("DELETE FROM job_runs")
    await home.hand.execute(insert, "c", JOB, 100, timedelta(seconds=10), timedelta(seconds=5))
    assert await rate() == pytest.approx(10, rel=0.2)


async def test_ringing_wakes_whoever_listens_and_says_nothing_of_a_row(home: RowDatabase) -> None:
    rung: asyncio.Queue[str] = asyncio.Queue()
    await home.hand.add_listener(registry.DOORBELL, lambda *told: rung.put_nowait(told[3]))
    await registry.ring(home.database.fetch)
    async with asyncio.timeout(5):
        assert await rung.get() in ("", "order")
