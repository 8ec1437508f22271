"""Handlers that do with their batch what is not theirs to do: nothing of it is committed, and nothing gets out."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import text

from regionjobs.definition import Retry
from regionjobs.source_lots import OwnedRows
from tests.support.job_failures import Poison, enter, made
from tests.support.row_databases import until

ONCE = Retry(1, timedelta(milliseconds=1), timedelta(milliseconds=5))


async def say(connection, shard, word):
    await connection.execute(text("INSERT INTO outside VALUES (:shard, :word)"), {"shard": shard, "word": word})


async def commits(batch):
    await enter(batch)
    await batch.connection.commit()


async def commits_and_hides_it(batch):
    await enter(batch)
    try:
        await batch.connection.commit()
    except Exception:  # noqa: BLE001 (as careless handlers do)
        return


async def rolls_back(batch):
    await enter(batch)
    await batch.connection.rollback()


async def rolls_back_and_goes_on(batch):
    await batch.connection.rollback()
    await enter(batch)
    await batch.connection.rollback()
    await say(batch.connection, batch.shard, "after")


async def commits_in_words(batch):
    await enter(batch)
    await batch.connection.exec_driver_sql("  commit ")


async def commits_in_words_and_hides_it(batch):
    await enter(batch)
    try:
        await batch.connection.execute(text("END"))
    except Exception:  # noqa: BLE001 (as careless handlers do)
        await say(batch.connection, batch.shard, "after")


async def rolls_back_in_words(batch):
    await enter(batch)
    await batch.connection.exec_driver_sql("ROLLBACK")


async def commits_behind_everything(batch):
    await enter(batch)
    raw = await batch.connection.get_raw_connection()
    await raw.driver_connection.execute("ROLLBACK")


async def begins_behind_everything(batch):
    raw = await batch.connection.get_raw_connection()
    transaction = raw.driver_connection.transaction()
    await transaction.start()
    await raw.driver_connection.execute("INSERT INTO outside VALUES ($1, 'behind')", batch.shard)


async def commits_by_itself(batch):
    await batch.connection.execution_options(isolation_level="AUTOCOMMIT")
    await enter(batch)


async def sees_only_what_was(batch):
    await batch.connection.execution_options(isolation_level="REPEATABLE READ")
    await enter(batch)


async def begins_a_block(batch):
    async with batch.connection.begin():
        await enter(batch)


async def closes(batch):
    await enter(batch)
    await batch.connection.close()


async def breaks_its_transaction(batch):
    await enter(batch)
    try:
        await batch.connection.exec_driver_sql("SELECT 1 / 0")
    except Exception:  # noqa: BLE001 (as careless handlers do)
        return


async def goes_elsewhere(batch):
    await enter(batch)
    await batch.connection.exec_driver_sql("SET search_path TO nowhere")


async def binds_nonsense(batch):
    await batch.connection.exec_driver_sql("INSERT INTO outside VALUES ($1, 'x')", ("not a number",))


async def exits(batch):
    await enter(batch)
    raise SystemExit(3)


async def interrupts(batch):
    await enter(batch)
    raise KeyboardInterrupt


async def cancels_itself(batch):
    await enter(batch)
    raise asyncio.CancelledError


async def waits_for_what_is_cancelled(batch):
    await enter(batch)
    task = asyncio.create_task(asyncio.sleep(10))
    task.cancel()
    await task


async def stops_iterating(batch):
    await enter(batch)
    next(iter([]))


async def returns_what_nobody_awaits(batch):
    await enter(batch)
    return asyncio.sleep(0)


def exits_in_a_thread(batch):
    batch.connection.exec_driver_sql("INSERT INTO outside VALUES ($1, 'thread')", (batch.shard,))
    raise SystemExit(3)


def interrupts_in_a_thread(batch):
    raise KeyboardInterrupt


def stops_iterating_in_a_thread(batch):
    next(iter([]))


def returns_a_coroutine(batch):
    return enter(batch)


def returns_a_generator(batch):
    return (row for row in batch)


HANDLERS = [
    commits, commits_and_hides_it, rolls_back, rolls_back_and_goes_on, commits_in_words, commits_in_words_and_hides_it,
    rolls_back_in_words, commits_behind_everything, begins_behind_everything, commits_by_itself, sees_only_what_was,
    begins_a_block, closes, breaks_its_transaction, goes_elsewhere, binds_nonsense, exits, interrupts,
    cancels_itself, waits_for_what_is_cancelled, stops_iterating, returns_what_nobody_awaits, exits_in_a_thread,
    interrupts_in_a_thread, stops_iterating_in_a_thread, returns_a_coroutine, returns_a_generator,
]  # fmt: skip


async def test_a_handler_that_does_what_is_not_its_own_fails_like_any_other_and_leaves_nothing(failing):
    """One after the other, on connections that they share: what one has left would show in the next."""
    ends = {}
    for number, handler in enumerate(HANDLERS, 1):
        await failing.put(f"k{number}")
        tally = await failing.work(made(handler, retry=ONCE))
        ends[handler.__name__] = (tally.rows, tally.set_aside)
        assert await failing.ledger() == [], handler.__name__
        assert await failing.outside() == [], handler.__name__
        assert (await failing.offset())["seq"] == number, handler.__name__
    assert ends == {handler.__name__: (0, 1) for handler in HANDLERS}
    classes = {row.seq: row.error_class for row in await failing.asides()}
    assert classes[HANDLERS.index(exits) + 1] == "SystemExit"
    assert classes[HANDLERS.index(stops_iterating_in_a_thread) + 1] == "RuntimeError"
    await failing.put("good")
    await failing.work(made(enter))
    assert await failing.ledger() == [len(HANDLERS) + 1]


async def test_savepoints_are_the_handlers_own(failing):
    async def handle(batch):
        await enter(batch)
        async with batch.connection.begin_nested() as nested:
            await say(batch.connection, batch.shard, "undone")
            await nested.rollback()
        async with batch.connection.begin_nested():
            await say(batch.connection, batch.shard, "kept")
        await batch.connection.exec_driver_sql("SAVEPOINT mine")
        await say(batch.connection, batch.shard, "undone in words")
        await batch.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT mine")
        await batch.connection.begin_nested()
        await say(batch.connection, batch.shard, "left open")

    await failing.put("a")
    await failing.work(made(handle))
    assert (await failing.outside(), await failing.ledger()) == (["kept", "left open"], [1])


async def test_savepoints_are_a_threads_own_too(failing):
    def handle(batch):
        insert = text("INSERT INTO outside VALUES (:shard, :word)")
        with batch.connection.begin_nested():
            batch.connection.execute(insert, {"shard": batch.shard, "word": "kept"})
        with suppress(Poison), batch.connection.begin_nested():
            batch.connection.execute(insert, {"shard": batch.shard, "word": "undone"})
            raise Poison
        nested = batch.connection.begin_nested()
        batch.connection.execute(insert, {"shard": batch.shard, "word": "undone too"})
        nested.rollback()

    await failing.put("a")
    await failing.work(made(handle, retry=ONCE))
    assert (await failing.outside(), await failing.asides()) == (["kept"], [])


@pytest.mark.parametrize("value", [None, 5, False, "text", [1]])
async def test_what_a_handler_returns_means_nothing(failing, value):
    async def handle(batch):
        await enter(batch)
        return value

    await failing.put("a")
    await failing.work(made(handle))
    assert await failing.ledger() == [1]


async def test_what_is_kept_of_a_batch_is_of_no_use_when_it_is_over(failing):
    kept = []

    async def handle(batch):
        kept.append((batch, batch.connection))
        await enter(batch)

    await failing.put("a")
    await failing.work(made(handle), client="client")
    await failing.put("b")
    await failing.work(made(handle))
    for batch, connection in kept:
        for name in ("connection", "client"):
            with pytest.raises(RuntimeError, match="the batch is over"):
                getattr(batch, name)
        with pytest.raises(Exception, match="closed"):
            await say(connection, batch.shard, "late")
    assert (await failing.outside(), await failing.ledger()) == ([], [1, 2])


async def test_a_task_that_a_handler_leaves_behind_does_nothing_in_another_batch(failing):
    go_on, left = asyncio.Event(), []

    async def linger(connection, shard):
        await go_on.wait()
        await say(connection, shard, "late")

    async def handle(batch):
        left.append(asyncio.create_task(linger(batch.connection, batch.shard)))
        await enter(batch)

    async def handle_next(batch):
        await enter(batch)
        go_on.set()
        await asyncio.gather(*left, return_exceptions=True)

    await failing.put("a")
    await failing.work(made(handle))
    await failing.put("b")
    await failing.work(made(handle_next))
    assert [type(it.exception()).__name__ for it in left] == ["ResourceClosedError"]
    assert (await failing.outside(), await failing.ledger()) == ([], [1, 2])


async def test_a_task_that_still_works_on_the_connection_costs_the_batch(failing):
    left = []

    async def handle(batch):
        await enter(batch)
        left.append(asyncio.create_task(batch.connection.exec_driver_sql("SELECT pg_sleep(20)")))
        await until(is_sleeping, "it sleeps")

    async def is_sleeping():
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'PgSleep'"
        return await failing.idc.hand.fetchval(query, f"batches-{failing.shard}")

    await failing.put("a")
    await failing.work(made(handle, retry=ONCE))
    assert (await failing.aside_keys(), await failing.ledger()) == (failing.keys("a"), [])
    with pytest.raises(Exception, match=r"closed|lost"):
        await left[0]


async def test_what_a_handler_leaves_on_its_session_is_not_there_in_the_next_batch(failing):
    async def handle(batch):
        await enter(batch)
        for statement in (
            "SET search_path TO public, nowhere", "SELECT pg_advisory_lock(4711)", "LISTEN mine",
        ):  # fmt: skip
            await batch.connection.exec_driver_sql(statement)

    await failing.put("a")
    await failing.work(made(handle))
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"
    assert await failing.idc.hand.fetchval(locks) == 0
    paths = []

    async def look(batch):
        paths.append((await batch.connection.exec_driver_sql("SHOW search_path")).scalar_one())

    await failing.put("b")
    await failing.work(made(look))
    assert paths == ['"$user", public']


async def test_a_row_that_breaks_a_constraint_only_at_the_commit_is_found_too(failing):
    await failing.idc.hand.execute(
        "CREATE TABLE IF NOT EXISTS late (shard int, number int, UNIQUE (shard, number) DEFERRABLE INITIALLY DEFERRED)"
    )

    async def handle(batch):
        await enter(batch)
        insert = "INSERT INTO late VALUES ($1, $2)"
        await batch.connection.exec_driver_sql(insert, [(row.shard, len(row.key)) for row in batch.rows])

    await failing.put("a", "bb", "c", "ddd")
    await failing.work(made(handle, retry=ONCE))
    assert (await failing.aside_keys(), await failing.ledger()) == (failing.keys("c"), [1, 2, 4])


async def test_a_thread_that_runs_beyond_its_time_is_rolled_back_and_keeps_its_place_until_it_returns(failing):
    has_begun, may_return, results = threading.Event(), threading.Event(), []

    def handle(batch):
        connection = batch.connection
        has_begun.set()
        connection.exec_driver_sql("INSERT INTO outside VALUES ($1, 'thread')", (batch.shard,))
        may_return.wait(20)
        try:
            connection.exec_driver_sql("INSERT INTO outside VALUES ($1, 'late')", (batch.shard,))
        except Exception as error:
            results.append(type(error).__name__)
            raise Poison("a secret") from error

    await failing.put("a")
    job = made(handle, retry=ONCE, timeout=timedelta(seconds=0.3), concurrency=1)
    begun = await failing.begin(job)
    working = asyncio.create_task(failing.finish(begun))

    async def is_given_up():
        return has_begun.is_set() and not await failing.sessions(f"batches-{failing.shard}")

    await until(is_given_up, "the batch is rolled back")
    assert not working.done()
    # Another batch of the job finds no place, and loses nothing by it.
    second = await begun._handling.bench.perform(begun._handling.context, OwnedRows([], ()), [])
    assert second.outcome.value == "passing"
    may_return.set()
    await working
    assert results == ["ResourceClosedError"]
    assert (await failing.outside(), await failing.aside_keys()) == ([], failing.keys("a"))
    (row,) = await failing.asides()
    assert row.error_class == "TimeoutError"


async def test_a_thread_whose_statement_runs_beyond_its_time_gives_its_connection_back(failing):
    def handle(batch):
        batch.connection.exec_driver_sql("SELECT pg_sleep(20)")

    await failing.put("a")
    await failing.work(made(handle, retry=ONCE, timeout=timedelta(seconds=0.3)))
    assert await failing.aside_keys() == failing.keys("a")

    async def is_gone():
        return "active" not in await failing.sessions(f"batches-{failing.shard}")

    await until(is_gone, "the statement has ended")
    assert failing.connections._engine.pool.checkedout() == 0


async def test_a_handler_that_swallows_its_time_out_may_finish_what_it_does(failing):
    async def handle(batch):
        await enter(batch)
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            return

    await failing.put("a")
    await failing.work(made(handle, timeout=timedelta(seconds=0.2)))
    assert (await failing.ledger(), await failing.asides()) == ([1], [])
