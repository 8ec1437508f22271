"""Migrations and datasets' tables: additive, idempotent, safe for many at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

from policy.errors import DatabaseUnavailable, RegiongateError
from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.database import Database
from rowstore.model import ShardEpoch, StoredRow, Written
from rowstore.schema import ensure_datasets, migrate
from rowstore.store import RowStore
from rowstore.tables import system_metadata
from tests.support.row_databases import CUSTOMERS, get, put

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tests.support.row_databases import RowDatabase

WIDER = Dataset("customers", KeyType.STRING, {**CUSTOMERS.columns, "city": Column("city", ColumnType.STRING)})


async def test_migrations_make_what_the_metadata_says(database_url: str) -> None:
    await migrate(database_url)
    await migrate(database_url)

    def compare(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), system_metadata)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(database_url))
    async with engine.connect() as connection:
        differences = await connection.run_sync(compare)
        fence_options = "SELECT reloptions FROM pg_class WHERE relname = 'shard_fences'"
        options = (await connection.exec_driver_sql(fence_options)).scalar_one()
    await engine.dispose()
    assert differences == []
    assert "fillfactor=20" in options


async def test_a_database_of_a_newer_release_is_left_alone(database_url: str) -> None:
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    with pytest.raises(RegiongateError, match="newer release") as caught:
        await migrate(database_url)
    assert not isinstance(caught.value, DatabaseUnavailable)


async def test_a_database_that_cannot_be_reached_is_said_to_be_so() -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate("postgresql://nobody:secret@127.0.0.1:1/none")


async def test_many_gateways_may_make_the_same_tables_at_once(database_url: str) -> None:
    await migrate(database_url)
    async with Database.open(database_url) as one, Database.open(database_url) as other:
        await asyncio.gather(*(ensure_datasets(database, [CUSTOMERS, WIDER]) for database in (one, other) * 4))
        names = [
            row["attname"]
            for row in await one.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'rows_customers'::regclass AND attnum > 0"
            )
        ]
    assert set(names) == {"region_code", "key", "shard", "seq", "update_time", "deleted", "name", "spend", "city"}


async def test_a_new_column_is_null_in_rows_that_are_there(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("k", {"name": "Li"})])
    await ensure_datasets(idc.database, [WIDER])
    old = await idc.store.read(CUSTOMERS, [get("k")])
    new = await idc.store.read(WIDER, [get("k")])
    assert isinstance(old[0], StoredRow)
    assert isinstance(new[0], StoredRow)
    assert new[0].values == {**old[0].values, "city": None}


async def test_a_dataset_or_column_that_is_not_there_yet_can_be_waited_for(idc: RowDatabase) -> None:
    newer = Dataset("newer", KeyType.STRING, {})
    for dataset in (newer, WIDER):
        with pytest.raises(DatabaseUnavailable, match="not in the database yet"):
            await idc.store.read(dataset, [get("k")])
        with pytest.raises(DatabaseUnavailable, match="not in the database yet"):
            await idc.store.write(dataset, [put("k")])
    await ensure_datasets(idc.database, [newer, WIDER])
    assert isinstance((await idc.store.write(newer, [put("k")]))[0], Written)
    assert isinstance((await idc.store.write(WIDER, [put("k")]))[0], Written)


async def test_law_l8_a_column_of_another_type_is_refused_by_name_and_the_rest_is_made(idc: RowDatabase) -> None:
    changed = Dataset("customers", KeyType.INT64, {"spend": Column("spend", ColumnType.STRING)})
    fresh = Dataset("fresh", KeyType.STRING, {})
    with pytest.raises(RegiongateError) as caught:
        await ensure_datasets(idc.database, [changed, fresh])
    assert "column key of dataset customers has type text in the database, not bigint" in str(caught.value)
    assert "column spend of dataset customers has type bigint in the database, not text" in str(caught.value)
    assert await RowStore(idc.database).count_rows(fresh) == {}


async def test_system_and_dataset_tables_cannot_meet(idc: RowDatabase) -> None:
    dataset = Dataset("shard_fences", KeyType.STRING, {})
    await ensure_datasets(idc.database, [dataset])
    await idc.store.write(dataset, [put("k")])
    assert len(await idc.store.fences.open([ShardEpoch("DE", 0, 1)])) == 1
