"""The jobs that are measured, as a module of jobs that a runner loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

import regiongate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regionjobs.batch import Batch

BATCH = 1000
DATASET = "places"
MANY, SOME = "DE", "FR"
"""RegionCodes of many rows, and of some."""
EFFECTS = "effects_bench"

INSERT = """
INSERT INTO {name} (region_code, shard, key, name, population)
SELECT {region_code}, {shard}, r.*
FROM unnest({keys}, {names}, {populations}) AS r (key, name, population)
"""
_INSERT = text(
    INSERT.format(
        name=EFFECTS, region_code="CAST(:region_code AS text)", shard="CAST(:shard AS integer)",
        keys="CAST(:keys AS text[])", names="CAST(:names AS text[])", populations="CAST(:populations AS bigint[])",
    )
)  # fmt: skip


@regiongate.job(dataset=DATASET, regions=[MANY], batch_size=BATCH)
async def bench_rows(batch: Batch) -> None:
    """Nothing is done with rows that are there."""


@regiongate.job(dataset=DATASET, regions=[MANY], batch_size=BATCH, format="arrow")
async def bench_arrow(batch: Batch) -> None:
    """Nothing is done with a table that is there."""
    assert batch.table.num_rows == len(batch)


@regiongate.job(dataset=DATASET, regions=[SOME], batch_size=BATCH)
async def bench_effects(batch: Batch) -> None:
    """Something of each row is inserted elsewhere, in the batch's transaction."""
    values: dict[str, Any] = {"region_code": batch.region_code, "shard": batch.shard}
    values |= columns((row.key, row["name"], row["population"]) for row in batch.rows)
    await batch.connection.execute(_INSERT, values)


def columns(rows: Iterable[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """Rows as the arrays that are inserted."""
    keys, names, populations = map(list, zip(*rows, strict=True))
    return {"keys": keys, "names": names, "populations": populations}
