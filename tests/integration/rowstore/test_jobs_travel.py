"""What jobs keep of a shard goes along when it moves: offsets, rows set aside, and effects; nothing stays behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from policy.errors import ClaimLost, DatabaseUnavailable, SchemaDiffers
from rowstore.jobs import offsets, registry
from rowstore.jobs.model import Advance, SetAside
from rowstore.model import ShardEpoch
from tests.support.job_stores import JOB, LEDGER, change, commit, connected, enter, ledger, offset, register, take
from tests.support.row_databases import STEP, MovePair, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rowstore.jobs.model import Claim

TAGGED = "region_code text NOT NULL, shard int NOT NULL"
KEPT = ("job_offsets", "job_set_aside", "effects_ledger")
NOTHING: dict[str, set[str]] = {table: set() for table in KEPT}


@pytest.fixture
async def homes(pair: MovePair) -> AsyncIterator[MovePair]:
    """Two IDCs with ledgers, and four changes in shard 0 of the first."""
    for idc in (pair.source, pair.target):
        await idc.hand.execute(LEDGER)
        await register(idc)
    await change(pair.source, "a", "b", "c", "d")
    return pair


async def kept(idc: object, shard: int = 0) -> dict[str, set[str]]:
    """What jobs keep of a shard in a database."""
    return {
        table: {
            record[0]
            for record in await idc.hand.fetch(f"SELECT to_jsonb(t)::text FROM {table} AS t WHERE shard = $1", shard)
        }
        for table in KEPT
    }


async def work(pair: MovePair) -> Claim:
    """Handles three changes, of which one is set aside, and leaves one."""
    held = await commit(pair.source, await take(pair.source), [1, 2])
    async with connected(pair.source) as connection, connection.transaction():
        await offsets.set_aside(connection.fetch, JOB, SetAside("DE", 0, 3, "c", 5, "ValueError", "says: c"))
        await offsets.advance(connection.fetch, JOB, held, Advance(3, after=2))
    return held._replace(seq=3)


async def test_law_l1_offsets_rows_set_aside_and_effects_go_along_and_none_stays(homes: MovePair) -> None:
    await work(homes)
    await take(homes.source, "two.1", job="other")
    other = await commit(homes.source, await take(homes.source, shard=1), [7])
    await homes.sender.begin_export(STEP)
    await homes.copy()
    assert await kept(homes.target) == NOTHING, "they change until the source is closed"
    progress = await homes.close_and_copy()
    assert progress.digest == await homes.sender.digest(STEP)
    await homes.receiver.open(STEP)
    at_source = await kept(homes.source)
    assert await kept(homes.target) == at_source
    assert [len(at_source[table]) for table in KEPT] == [2, 1, 2]
    assert progress.digest is not None
    proof = await homes.sender.purge(STEP, progress.digest)
    assert proof.remaining == 0
    assert {table: proof.deleted[table] for table in KEPT} == {
        "job_offsets": 2,
        "job_set_aside": 1,
        "effects_ledger": 2,
    }
    assert await kept(homes.source) == NOTHING
    # Another shard's stay where they are, and its job goes on.
    await commit(homes.source, other, [8])
    assert await ledger(homes.source, 1) == [7, 8]


async def test_the_new_owner_goes_on_from_where_the_old_one_was(homes: MovePair) -> None:
    old = await work(homes)
    await homes.move()
    fetch = homes.target.database.fetch
    (shard,) = await offsets.pending(fetch, JOB, ["DE"], firing=None, is_global=False)
    assert shard == ("DE", 0, 2, 4, 3)
    held = await take(homes.target, "there.1", epoch=2)
    assert (held.seq, held.token) == (3, 3)
    await commit(homes.target, held, [4])
    assert await ledger(homes.target) == [1, 2, 4]
    with pytest.raises(ClaimLost):
        await commit(homes.source, old, [4])
    assert await offsets.claim(homes.source.database.fetch, JOB, "here.1", [ShardEpoch("DE", 0, 1)]) == []
    # The row that was set aside is seen, and replayed, where it is now.
    assert (await registry.set_aside_rows(homes.source.database.fetch, JOB, "", 9))[1] == 0
    assert await registry.replay(fetch, JOB, "") == 1
    assert [it.shard for it in await offsets.replays_wanted(fetch, JOB, ["DE"])] == [0]


async def test_law_l5_a_batch_that_waits_in_its_transaction_for_the_whole_move_commits_nothing(homes: MovePair) -> None:
    held = await work(homes)
    async with connected(homes.source) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await enter(connection, held, [4])
        progress = await homes.move()
        with pytest.raises(ClaimLost):
            await offsets.advance(connection.fetch, JOB, held, Advance(4, after=3))
        await transaction.rollback()
    assert progress.digest is not None
    assert (await homes.sender.purge(STEP, progress.digest)).remaining == 0
    assert await ledger(homes.target) == [1, 2]


async def test_law_l5_a_batch_that_commits_while_the_shard_is_closed_is_in_the_last_round(homes: MovePair) -> None:
    held = await work(homes)
    await homes.sender.begin_export(STEP)
    await homes.copy()
    await homes.sender.drain(STEP)
    async with connected(homes.source) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await enter(connection, held, [4])
        await offsets.advance(connection.fetch, JOB, held, Advance(4, after=3))
        closing = asyncio.create_task(homes.sender.close(STEP))
        await homes.source.until_waiting(1)
        await transaction.commit()
        fence = await closing
    progress = await homes.copy(STEP, closed_at_seq=fence.last_seq)
    await homes.receiver.open(STEP)
    assert await ledger(homes.target) == [1, 2, 4]
    assert await offset(homes.target) == (4, 2)
    assert (await homes.sender.purge(STEP, progress.digest)).remaining == 0


async def test_law_l1_no_late_order_changes_what_has_been_copied(homes: MovePair) -> None:
    """Each of these once made the source differ from its copy, so that it could never be purged."""
    held = await work(homes)
    await offsets.stop_at(homes.source.database.fetch, JOB, held)
    progress = await homes.move()
    fetch = homes.source.database.fetch
    await homes.sender.close(STEP)
    await registry.resume(fetch, JOB)
    await registry.replay(fetch, JOB, "")
    await offsets.claim(fetch, JOB, "late.1", [ShardEpoch("DE", 0, 1)])
    for late in (
        offsets.note_failure(fetch, JOB, held, "ValueError"),
        offsets.stop_at(fetch, JOB, held),
        offsets.forget_set_aside(fetch, JOB, [SetAside("DE", 0, 3, "c", 5, "ValueError", "")]),
    ):
        with pytest.raises(ClaimLost):
            await late
    assert progress.digest == await homes.sender.digest(STEP)
    assert (await homes.sender.purge(STEP, progress.digest)).remaining == 0


async def test_a_move_that_is_called_off_leaves_the_job_where_it_was_and_the_target_empty(homes: MovePair) -> None:
    old = await work(homes)
    await homes.sender.begin_export(STEP)
    await homes.copy()
    await homes.close_and_copy()
    assert [len(rows) for rows in (await kept(homes.target)).values()] == [1, 1, 2]
    off = STEP._replace(attempt=2)
    await homes.sender.reopen(off)
    assert (await homes.receiver.purge(off, None)).remaining == 0
    assert await kept(homes.target) == NOTHING
    with pytest.raises(ClaimLost):
        await commit(homes.source, old, [4])
    held = await take(homes.source)
    assert (held.seq, held.token) == (3, 3)
    await commit(homes.source, held, [4])
    assert await ledger(homes.source) == [1, 2, 4]


async def test_law_l3_what_an_earlier_stay_has_left_does_not_come_back_to_life(homes: MovePair) -> None:
    await work(homes)
    progress = await homes.move()
    # The source is not purged; the shard comes back with more done.
    await commit(homes.target, await take(homes.target, epoch=2), [4])
    back = MovePair(homes.target, homes.source, homes.receiver, homes.sender)
    step = STEP._replace(epoch=2, attempt=2)
    progress = await back.move(step)
    assert await ledger(homes.source) == [1, 2, 4]
    assert (await offset(homes.source) or ())[0] == 4
    assert (await homes.receiver.purge(step, progress.digest)).remaining == 0
    held = await take(homes.source, epoch=3)
    assert held.seq == 4


# ---- tables that cannot travel ----


async def test_law_l8_an_effects_table_that_the_target_lacks_is_named_and_nothing_is_copied(homes: MovePair) -> None:
    await homes.target.hand.execute("DROP TABLE effects_ledger")
    await homes.sender.begin_export(STEP)
    with pytest.raises(SchemaDiffers, match="table effects_ledger is missing at the target"):
        await homes.copy()
    assert await homes.target.hand.fetchval("SELECT count(*) FROM rows_customers") == 0


async def test_law_l8_a_column_of_effects_that_the_target_lacks_or_has_otherwise_is_named(homes: MovePair) -> None:
    await homes.sender.begin_export(STEP)
    await homes.source.hand.execute("ALTER TABLE effects_ledger ADD COLUMN note text")
    with pytest.raises(SchemaDiffers, match="column note of table effects_ledger is missing at the target"):
        await homes.copy()
    await homes.target.hand.execute("ALTER TABLE effects_ledger ADD COLUMN note integer")
    with pytest.raises(SchemaDiffers, match="column note of table effects_ledger has type integer at the target"):
        await homes.copy()


async def test_law_l8_an_effects_table_that_comes_up_before_the_last_round_is_not_left_behind(homes: MovePair) -> None:
    await homes.sender.begin_export(STEP)
    await homes.copy()
    await homes.source.hand.execute(f"CREATE TABLE effects_late ({TAGGED})")
    await homes.source.hand.execute("INSERT INTO effects_late VALUES ('DE', 0)")
    with pytest.raises(SchemaDiffers, match="table effects_late is missing at the target"):
        await homes.close_and_copy()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE effects_x (id int)",
        "CREATE TABLE effects_x (region_code text NOT NULL)",
        "CREATE TABLE effects_x (shard int NOT NULL)",
        "CREATE TABLE effects_x ()",
        # A row without a tag would stay where it is for ever.
        "CREATE TABLE effects_x (region_code text, shard int NOT NULL)",
        "CREATE TABLE effects_x (region_code text NOT NULL, shard int)",
        "CREATE TABLE effects_x (region_code text NOT NULL, shard text NOT NULL)",
        f"CREATE TABLE effects_x ({TAGGED}) PARTITION BY LIST (region_code)",
        "CREATE MATERIALIZED VIEW effects_x AS SELECT region_code, shard FROM rows_customers",
    ],
)
async def test_law_l8_a_table_of_effects_whose_rows_belong_to_no_shard_is_refused_by_name(
    pair: MovePair, statement: str
) -> None:
    for idc, step in ((pair.source, pair.sender.begin_export), (pair.target, pair.receiver.begin_import)):
        await idc.hand.execute(statement)
        with pytest.raises(
            SchemaDiffers, match=r"table effects_x is a job's by its name.*region_code.*shard.*NOT NULL"
        ):
            await step(STEP)
        kind = "MATERIALIZED VIEW" if "VIEW" in statement else "TABLE"
        await idc.hand.execute(f"DROP {kind} effects_x")
        await step(STEP)


async def test_a_view_of_effects_and_computed_columns_are_no_trouble(homes: MovePair) -> None:
    for idc in (homes.source, homes.target):
        await idc.hand.execute(
            "ALTER TABLE effects_ledger ADD COLUMN twice bigint GENERATED ALWAYS AS (seq * 2) STORED;"
            "CREATE VIEW effects_seen AS SELECT * FROM effects_ledger"
        )
    await work(homes)
    progress = await homes.move()
    assert await homes.target.hand.fetchval("SELECT array_agg(twice ORDER BY seq) FROM effects_seen") == [2, 4]
    assert (await homes.sender.purge(STEP, progress.digest)).remaining == 0


async def test_closing_does_not_wait_for_a_batch_that_is_only_paused(homes: MovePair) -> None:
    """Writers wait meanwhile: the server ends a commit that does not come."""
    held = await work(homes)
    await homes.sender.begin_export(STEP)
    await homes.copy()

    async def closes() -> bool:
        try:
            await homes.sender.close(STEP)
        except DatabaseUnavailable:
            return False
        return True

    async with connected(homes.source) as paused:
        await paused.execute("BEGIN")
        await enter(paused, held, [4])
        await offsets.advance(paused.fetch, JOB, held, Advance(4, after=3))
        await homes.sender.drain(STEP)
        await until(closes, "the shard is closed")
    await homes.copy(STEP, closed_at_seq=4)
    await homes.receiver.open(STEP)
    assert await ledger(homes.target) == [1, 2]
    await commit(homes.target, await take(homes.target, epoch=2), [4])
    assert await ledger(homes.target) == [1, 2, 4]
