"""How much there is of shards: rows counted on the index, bytes by their part in the tables' sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rowstore.moving.connections import fetch_all, fetch_one
from rowstore.moving.layout import quote, read_layouts
from rowstore.moving.model import ShardSize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rowstore.database import Connection
    from rowstore.model import ShardEpoch
    from rowstore.moving.connections import MoveConnections

_TABLE: Final = """
SELECT greatest(reltuples, 0)::bigint, pg_table_size(oid) FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relname = $1
"""


async def measure(connections: MoveConnections, shards: Sequence[ShardEpoch]) -> list[ShardSize]:
    """See `rowstore.moving.Mover.measure`."""
    if not shards:
        return []
    rows, sizes = [0] * len(shards), [0.0] * len(shards)
    async with connections.take(is_urgent=False) as connection:
        for layout in (await read_layouts(connection, ())).by_seq:
            counts = await _count(connection, layout.table, shards)
            estimated, size = await fetch_one(connection, _TABLE, layout.table)
            # A table that was never analysed has fewer rows, by its statistics, than were counted.
            total = max(estimated, sum(counts), 1)
            for index, count in enumerate(counts):
                rows[index] += count
                sizes[index] += size * count / total
    return [
        ShardSize(shard.region_code, shard.shard, rows[index], round(sizes[index]))
        for index, shard in enumerate(shards)
    ]


async def _count(connection: Connection, table: str, shards: Sequence[ShardEpoch]) -> list[int]:
    statement = f"""
        SELECT c.count FROM unnest($1::text[], $2::int[]) WITH ORDINALITY AS s (region_code, shard, place)
        CROSS JOIN LATERAL (
            SELECT count(*) FROM {quote(table)} AS t
            WHERE t.region_code = s.region_code COLLATE "C" AND t.shard = s.shard AND t.seq > 0
        ) AS c
        """  # noqa: S608 (quoted)
    records = await fetch_all(
        connection, statement, [shard.region_code for shard in shards], [shard.shard for shard in shards]
    )
    return [record[0] for record in records]
