"""The bare part that writes are measured against: asyncpg on the same PostgreSQL, on a table of the same shape.

Same columns, same primary key and secondary index, same durability (`synchronous_commit` on); no fence, no sequence,
no remembered request, no gateway.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from bench.rows import REGION, values, written_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_TABLE = """
DROP TABLE IF EXISTS bench_bare;
CREATE TABLE bench_bare (
    region_code text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL, shard integer NOT NULL, seq bigint NOT NULL,
    update_time timestamptz NOT NULL, deleted boolean NOT NULL, name text, spend bigint,
    PRIMARY KEY (region_code, key)
);
CREATE INDEX ON bench_bare (region_code, shard, seq);
"""
_CONFLICT = """
ON CONFLICT (region_code, key) DO UPDATE SET shard = excluded.shard, seq = excluded.seq,
    update_time = excluded.update_time, deleted = excluded.deleted, name = excluded.name, spend = excluded.spend
"""
_UPSERT = f"INSERT INTO bench_bare VALUES ($1, $2, $3, $4, now(), false, $5, $6) {_CONFLICT}"
_UPSERT_MANY = f"""
INSERT INTO bench_bare
SELECT $1, i.key, i.shard, i.seq, now(), false, i.name, i.spend
FROM unnest($2::text[], $3::int[], $4::bigint[], $5::text[], $6::bigint[]) AS i(key, shard, seq, name, spend)
{_CONFLICT}
"""


class BareTable:
    """Upserts by bare asyncpg on a fixed number of connections."""

    def __init__(self, connections: list[asyncpg.Connection]) -> None:
        self._connections = connections
        self._free: asyncio.LifoQueue[asyncpg.Connection] = asyncio.LifoQueue()
        for connection in connections:
            self._free.put_nowait(connection)
        self._seq = 0

    async def upsert(self, number: int) -> None:
        """One row in a transaction of its own."""
        self._seq += 1
        row = values(number)
        connection = await self._free.get()
        try:
            await connection.execute(
                _UPSERT, REGION, written_key(number), number % 16, self._seq, row["name"], row["spend"]
            )
        finally:
            self._free.put_nowait(connection)

    async def upsert_many(self, numbers: range) -> None:
        """Many rows in one statement, sorted by key."""
        rows = sorted(
            (written_key(number), number % 16, number, f"customer {number:08d}", number) for number in numbers
        )
        connection = await self._free.get()
        try:
            await connection.execute(_UPSERT_MANY, REGION, *(list(column) for column in zip(*rows, strict=True)))
        finally:
            self._free.put_nowait(connection)


@asynccontextmanager
async def bare_table(url: str, connections: int) -> AsyncGenerator[BareTable]:
    """Makes the table and connects; drops it in the end."""
    opened = [await asyncpg.connect(url) for _ in range(connections)]
    try:
        await opened[0].execute(_TABLE)
        yield BareTable(opened)
    finally:
        await opened[0].execute("DROP TABLE IF EXISTS bench_bare")
        for connection in opened:
            await connection.close()
