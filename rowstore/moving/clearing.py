"""Deletes a shard's rows in bounded transactions, each of which first makes sure that it still may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rowstore.moving.connections import fetch_all, run, transaction
from rowstore.moving.digest import BY_SEQ, in_shard
from rowstore.moving.layout import quote, read_layouts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rowstore.database import Connection
    from rowstore.moving.layout import Layouts
    from rowstore.moving.model import MoveStep, TableLayout
    from rowstore.shard_tables import ShardTable

BATCH_ROWS: Final = 20_000
"""Rows that are deleted in one transaction."""


async def delete_rows(
    connection: Connection,
    step: MoveStep,
    shard_tables: Sequence[ShardTable],
    may_go_on: Callable[[], Awaitable[bool]],
) -> dict[str, int]:
    """Deletes the rows of a shard from every table that travels; returns how many, by table.

    Args:
        connection: No transaction is open.
        step: Names the shard.
        shard_tables: System tables that travel.
        may_go_on: Asked at the beginning of each transaction; it locks what makes the answer last until the end. False
            ends the deletion without a word.
    """
    layouts = await read_layouts(connection, shard_tables)
    deleted: dict[str, int] = {}
    for layout in layouts.all:
        count, condition = BATCH_ROWS, _lies_here(layouts, layout, step)
        deleted[layout.table] = 0
        while count == BATCH_ROWS:
            async with transaction(connection):
                if not await may_go_on():
                    return deleted
                count = await _delete_batch(connection, layout, condition)
            deleted[layout.table] += count
    return deleted


async def count_rows(connection: Connection, step: MoveStep, shard_tables: Sequence[ShardTable]) -> int:
    """How many rows of the shard there are, in all tables that travel."""
    layouts = await read_layouts(connection, shard_tables)
    counts = " UNION ALL ".join(
        f"SELECT count(*) FROM {quote(layout.table)} WHERE {_lies_here(layouts, layout, step)}"  # noqa: S608 (quoted)
        for layout in layouts.all
    )
    return sum(record[0] for record in await fetch_all(connection, counts))


async def _delete_batch(connection: Connection, layout: TableLayout, condition: str) -> int:
    table = quote(layout.table)
    statement = (
        f"DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE {condition} LIMIT {BATCH_ROWS}))"  # noqa: S608 (quoted)
    )
    status = await run(connection, statement)
    return int(status.rpartition(" ")[2])


def _lies_here(layouts: Layouts, layout: TableLayout, step: MoveStep) -> str:
    """Condition for a table's rows of the shard; every row has a sequence above 0, and the index wants to hear it."""
    condition = in_shard(step.region_code, step.shard)
    return f"{condition} AND {BY_SEQ}" if layout in layouts.by_seq else condition
