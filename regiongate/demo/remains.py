"""Counts what is stored of some RegionCodes in each database, in whatever table: the proof that nothing stayed behind.

Tables are found in the database's own catalog, so that none is forgotten; rows that were deleted leave tombstones, and
these count, too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

TIMEOUT_SECONDS = 30
NOTES = frozenset({"shard_fences", "shard_imports", "shard_purges"})
"""Tables that say of a shard what may be done with it, and hold nothing of a row."""

_TABLES = """
SELECT table_name FROM information_schema.columns
WHERE table_schema = current_schema() AND column_name = 'region_code' ORDER BY table_name
"""


async def count_rows(url: str, region_codes: Collection[str]) -> dict[str, int]:
    """Table -> rows of the RegionCodes, of one database; only tables that have any."""
    connection = await asyncpg.connect(url, timeout=TIMEOUT_SECONDS)
    try:
        found: dict[str, int] = {}
        for record in await connection.fetch(_TABLES, timeout=TIMEOUT_SECONDS):
            table: str = record["table_name"]
            if table in NOTES:
                continue
            statement = f'SELECT count(*) FROM "{table}" WHERE region_code = ANY($1::text[])'  # noqa: S608 (the catalog's)
            found[table] = await connection.fetchval(statement, list(region_codes), timeout=TIMEOUT_SECONDS)
        return {table: rows for table, rows in found.items() if rows}
    finally:
        await connection.close(timeout=TIMEOUT_SECONDS)


async def count_everywhere(urls: Mapping[str, str], region_codes: Collection[str]) -> dict[str, dict[str, int]]:
    """IDC -> table -> rows, read from each database directly."""
    counts = await asyncio.gather(*(count_rows(url, region_codes) for url in urls.values()))
    return dict(zip(urls, counts, strict=True))
