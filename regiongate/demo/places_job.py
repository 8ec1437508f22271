"""The demo's job: of each country the number of its places, the people in them, and the largest place.

It runs in every IDC over the places that lie there, and goes on as they are written. A row that is written again comes
again: so what was counted for each key is kept, and only the difference is added. Both tables are named `effects_...`
and say whose row each of theirs is, so they travel with the shards, and lie where the places themselves may lie.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import regiongate
from regiongate.demo.places import DATASET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regiongate import Batch

JOB = "countries"

metadata = MetaData()
figures = Table(
    "effects_places",
    metadata,
    Column("region_code", Text, primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("places", BigInteger, nullable=False),
    Column("population", BigInteger, nullable=False),
    Column("largest_key", Text),
    Column("largest", BigInteger),
)
seen = Table(
    "effects_places_seen",
    metadata,
    Column("region_code", Text, primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    # As it is counted now; none once the place has been deleted.
    Column("population", BigInteger),
)

# What was counted before is read in the statement that replaces it.
_COUNT = text("""
WITH batch AS (
    SELECT * FROM unnest(CAST(:keys AS text[]), CAST(:populations AS bigint[])) AS b (key, population)
), before AS (
    SELECT key, s.population FROM batch JOIN effects_places_seen AS s USING (key)
    WHERE s.region_code = :region_code AND s.shard = :shard
), noted AS (
    INSERT INTO effects_places_seen (region_code, shard, key, population)
    SELECT :region_code, :shard, key, population FROM batch
    ON CONFLICT (region_code, shard, key) DO UPDATE SET population = excluded.population
)
INSERT INTO effects_places AS f (region_code, shard, places, population)
SELECT :region_code, :shard, count(batch.population) - count(before.population),
    coalesce(sum(batch.population), 0) - coalesce(sum(before.population), 0)
FROM batch LEFT JOIN before USING (key)
ON CONFLICT (region_code, shard) DO UPDATE
SET places = f.places + excluded.places, population = f.population + excluded.population
""")
_FIND_LARGEST = text("""
UPDATE effects_places SET (largest_key, largest) = (
    SELECT key, population FROM effects_places_seen
    WHERE region_code = :region_code AND shard = :shard AND population IS NOT NULL
    ORDER BY population DESC, key COLLATE "C" LIMIT 1
) WHERE region_code = :region_code AND shard = :shard
""")


@regiongate.job(name=JOB, dataset=DATASET, kind="long-running", with_deleted=True)
async def count_places(batch: Batch) -> None:
    """Adds what has changed in a shard, in the transaction that notes how far the shard has been counted."""
    shard = {"region_code": batch.region_code, "shard": batch.shard}
    counted = {
        "keys": [row.key for row in batch.rows],
        "populations": [None if row.is_deleted else row["population"] or 0 for row in batch.rows],
    }
    await batch.connection.execute(_COUNT, {**shard, **counted})
    await batch.connection.execute(_FIND_LARGEST, shard)


async def make_tables(urls: Iterable[str]) -> None:
    """Makes the job's tables in every IDC's database, also where no place lies yet: one may move there."""
    await asyncio.gather(*map(_make_tables, urls))


async def _make_tables(url: str) -> None:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()
