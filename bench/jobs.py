"""Figures about jobs: how fast a runner goes through rows, as rows, as Arrow tables, and with effects.

Each is a pass of a batch job by a whole runner (claims, pages, handler, an offset committed for each 1,000 rows), from
the order to the end of the firing, by the database's clock; against asyncpg that scans the same rows by their index in
batches of as many, on one connection after the other's end, and commits nothing, or no more than the same inserts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import asyncpg

from bench.harness import Figure, Reach, alternate, summarise
from bench.job_handlers import BATCH, EFFECTS, INSERT, MANY, SOME, columns
from bench.job_stack import ROWS, SHARDS, TABLE, VALUES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.job_stack import JobStack

BARE_EFFECTS = "bench_effects"

_PAGE = f"""
SELECT seq, key, update_time, {VALUES} FROM {TABLE}
WHERE region_code = $1 AND shard = $2 AND seq > $3 AND seq > 0 ORDER BY seq LIMIT {BATCH}
"""
_EFFECTS = """
DROP TABLE IF EXISTS {name};
CREATE TABLE {name} (
    region_code text NOT NULL, shard integer NOT NULL, key text NOT NULL, name text, population bigint,
    PRIMARY KEY (region_code, key)
)
"""
_BARE_INSERT = INSERT.format(
    name=BARE_EFFECTS, region_code="$1", shard="$2", keys="$3::text[]", names="$4::text[]",
    populations="$5::bigint[]",
)  # fmt: skip


async def scan(stack: JobStack, rounds: int) -> list[Figure]:
    """An empty handler that gets rows."""
    return [await _scan("scan", stack, rounds, "bench_rows", 0.6)]


async def scan_arrow(stack: JobStack, rounds: int) -> list[Figure]:
    """An empty handler that gets Arrow tables, against asyncpg's records."""
    return [await _scan("scan_arrow", stack, rounds, "bench_arrow", 1.0)]


async def _scan(name: str, stack: JobStack, rounds: int, job_name: str, reach: float) -> Figure:
    measured = await alternate(
        rounds, lambda: stack.run(job_name, ROWS[MANY]), lambda: _bare_scan(stack, MANY, _look_at_nothing)
    )
    return summarise(name, "rows/s", "asyncpg keyset scan", Reach(reach, at_least=True), measured)


async def _look_at_nothing(_connection: asyncpg.Connection, _shard: int, _records: list[asyncpg.Record]) -> None:
    """Records that are there."""


async def scan_effects(stack: JobStack, rounds: int) -> list[Figure]:
    """A handler that inserts its rows elsewhere, against asyncpg that does so in a transaction for each batch."""
    for name in (EFFECTS, BARE_EFFECTS):
        await stack.hand.execute(_EFFECTS.format(name=name))

    async def ours() -> float:
        await _empty(stack, EFFECTS)
        speed = await stack.run("bench_effects", ROWS[SOME])
        assert await stack.hand.fetchval(f"SELECT count(*) FROM {EFFECTS}") == ROWS[SOME]
        return speed

    async def baseline() -> float:
        await _empty(stack, BARE_EFFECTS)
        return await _bare_scan(stack, SOME, _insert)

    measured = await alternate(rounds, ours, baseline)
    return [summarise("scan_effects", "rows/s", "asyncpg scan + insert", Reach(0.6, at_least=True), measured)]


async def _empty(stack: JobStack, table: str) -> None:
    await stack.hand.execute(f"TRUNCATE {table}")
    await stack.hand.execute("CHECKPOINT")


async def _insert(connection: asyncpg.Connection, shard: int, records: list[asyncpg.Record]) -> None:
    arrays = columns((record["key"], record["name"], record["population"]) for record in records)
    async with connection.transaction():
        await connection.execute(_BARE_INSERT, SOME, shard, *arrays.values())


async def _bare_scan(
    stack: JobStack,
    region_code: str,
    handle: Callable[[asyncpg.Connection, int, list[asyncpg.Record]], Awaitable[None]],
) -> float:
    """Rows a second of asyncpg, one batch after the other."""
    connection = await asyncpg.connect(stack.url)
    try:
        statement = await connection.prepare(_PAGE)
        rows, start = 0, time.perf_counter()
        for shard in range(SHARDS):
            seq = 0
            while records := await statement.fetch(region_code, shard, seq):
                await handle(connection, shard, records)
                rows += len(records)
                seq = records[-1]["seq"]
        seconds = time.perf_counter() - start
    finally:
        await connection.close()
    assert rows == ROWS[region_code]
    return rows / seconds
