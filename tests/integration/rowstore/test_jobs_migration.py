"""A database from before there were jobs gets their tables, and keeps everything that it has."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import create_async_engine

from policy.errors import DatabaseUnavailable
from rowstore.database import Database
from rowstore.jobs import offsets, registry
from rowstore.jobs.tables import job_offsets
from rowstore.model import ShardEpoch
from rowstore.moving import Mover
from rowstore.schema import _MIGRATIONS, ensure_datasets, migrate
from rowstore.store import RowStore
from tests.support.job_stores import JOB, LEDGER, commit, job_record, ledger, take
from tests.support.postgres import create_database
from tests.support.row_databases import CUSTOMERS, STEP, MovePair, fill, prepare_target, put, row_database

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from runtime.embedded.postgres import EmbeddedPostgres


def _go(connection: Connection, *, way: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    getattr(command, way)(config, revision)


async def go(url: str, way: str, revision: str) -> None:
    """Upgrades or downgrades a database to some revision."""
    engine = create_async_engine("postgresql+asyncpg://", async_creator=partial(asyncpg.connect, url))
    async with engine.begin() as connection:
        await connection.run_sync(partial(_go, way=way, revision=revision))
    await engine.dispose()


async def test_a_database_with_rows_from_before_there_were_jobs_is_brought_up_to_date(
    database_url: str, postgres_server: EmbeddedPostgres
) -> None:
    await go(database_url, "upgrade", "0003")
    async with Database.open(database_url) as database:
        await ensure_datasets(database, [CUSTOMERS])
        store = RowStore(database)
        await store.fences.open([ShardEpoch("DE", 0, 1)])
        await store.write(CUSTOMERS, [put(f"k{i}", {"spend": i}) for i in range(5)])
        with pytest.raises(DatabaseUnavailable, match="not in the database yet"):
            await registry.register(database.fetch, job_record())
    await migrate(database_url)
    target_url = await create_database(postgres_server)
    await prepare_target(target_url)
    async with row_database(database_url) as idc, row_database(target_url) as target:
        assert await idc.hand.fetchval("SELECT count(*) FROM rows_customers") == 5
        # The job finds everything that was there before it.
        await registry.register(idc.database.fetch, job_record())
        (shard,) = await offsets.pending(idc.database.fetch, JOB, ["DE"], firing=None, is_global=False)
        assert (shard.seq, shard.last_seq) == (0, 5)
        for it in (idc, target):
            await it.hand.execute(LEDGER)
        await commit(idc, await take(idc), range(1, 6))
        # And the shard moves.
        async with Mover(idc.database) as sender, Mover(target.database) as receiver:
            pair = MovePair(idc, target, sender, receiver)
            await fill(pair, 3, "late")
            progress = await pair.move()
            assert (await sender.purge(STEP, progress.digest)).remaining == 0
        assert await ledger(target) == [1, 2, 3, 4, 5]


async def test_the_tables_are_as_the_metadata_says_also_where_no_comparison_looks(database_url: str) -> None:
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    try:
        options = await connection.fetchval("SELECT reloptions FROM pg_class WHERE relname = 'job_offsets'")
        collations = await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_name LIKE 'job%'"
            " AND column_name IN ('job', 'region_code', 'run', 'key') AND collation_name IS DISTINCT FROM 'C'"
        )
    finally:
        await connection.close()
    wanted = job_offsets.dialect_kwargs["postgresql_with"]
    assert set(options) == {f"{name}={value}" for name, value in wanted.items()}
    assert collations == []


async def test_taking_the_tables_away_and_making_them_again_leaves_a_database_that_works(database_url: str) -> None:
    await migrate(database_url)
    await go(database_url, "downgrade", "0003")
    await migrate(database_url)
    async with Database.open(database_url) as database:
        assert await registry.list_jobs(database.fetch) == []
