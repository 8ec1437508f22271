"""Purges: nothing is deleted that the new owner does not have, nothing stays, nothing comes late."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from policy.errors import DatabaseUnavailable, DigestMismatch, StaleAttempt
from rowstore.moving.digest import NOTHING
from tests.support.row_databases import CUSTOMERS, STEP, MovePair, fill, put


async def test_law_l3_rows_that_the_new_owner_does_not_have_are_not_deleted(pair: MovePair) -> None:
    await fill(pair)
    await pair.source.store.write(CUSTOMERS, [put("k", request_id="r")])
    progress = await pair.move()
    assert progress.digest is not None
    before = await pair.source.contents()
    wrong = (
        NOTHING,
        progress.digest._replace(rows=progress.digest.rows + 1),
        progress.digest._replace(digest="f" * 32),
    )
    for expected in wrong:
        with pytest.raises(DigestMismatch):
            await pair.sender.purge(STEP, expected)
    assert await pair.source.contents() == before
    proof = await pair.sender.purge(STEP, progress.digest)
    assert {table: rows for table, rows in proof.deleted.items() if rows} == {
        "rows_customers": 301,
        "write_requests": 1,
    }
    assert proof.remaining == 0
    assert not any((await pair.source.contents()).values())


async def test_a_purge_that_was_cut_short_goes_on(pair: MovePair) -> None:
    await fill(pair)
    progress = await pair.move()
    await pair.source.hand.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN RAISE EXCEPTION USING ERRCODE = '57014'; END$$;
        CREATE TRIGGER refuse BEFORE DELETE ON rows_customers EXECUTE FUNCTION refuse()"""
    )
    with pytest.raises(DatabaseUnavailable):
        await pair.sender.purge(STEP, progress.digest)
    # As if some batches had been deleted before.
    await pair.source.hand.execute("DROP TRIGGER refuse ON rows_customers")
    await pair.source.hand.execute("DELETE FROM rows_customers WHERE key < 'k2'")
    assert (await pair.sender.purge(STEP, progress.digest)).remaining == 0
    assert (await pair.sender.purge(STEP, progress.digest)).deleted["rows_customers"] == 0


async def test_law_l3_a_purge_that_was_paused_deletes_nothing_of_a_shard_that_comes_back(pair: MovePair) -> None:
    await fill(pair)
    progress = await pair.move()
    async with pair.source.hand.transaction():
        # It waits here with its comparison done, and nothing deleted yet.
        await pair.source.hand.execute("LOCK TABLE shard_imports IN EXCLUSIVE MODE")
        purge = asyncio.create_task(pair.sender.purge(STEP, progress.digest))
        await pair.source.until_waiting(1)
        await pair.source.set_fence(mode="importing", epoch=3)
    with pytest.raises(StaleAttempt):
        await purge
    assert len((await pair.source.contents())["rows_customers"]) == 300


async def test_a_purge_meets_requests_that_are_forgotten(pair: MovePair) -> None:
    await pair.source.store.write(CUSTOMERS, [put(f"k{i}", request_id=f"r{i}") for i in range(100)])
    progress = await pair.move()
    await pair.source.store.forget_requests(timedelta(0))
    assert (await pair.sender.purge(STEP, progress.digest)).remaining == 0
