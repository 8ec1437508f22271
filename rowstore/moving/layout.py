"""The tables that travel with a shard, as the database has them.

The tables of datasets and of jobs are found in the catalog, not in the policy: what lies there belongs to somebody,
whatever this gateway knows of the newest policy. Source and target may have made their columns in different orders, so
columns travel by name, in the source's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policy.errors import SchemaDiffers
from rowstore.moving.connections import fetch_all
from rowstore.moving.model import TableLayout
from rowstore.shard_tables import EFFECTS_PREFIX, Travels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rowstore.database import Connection
    from rowstore.moving.connections import MoveConnections
    from rowstore.shard_tables import ShardTable

# Rows lie in tables, but also in partitioned ones, materialized views and the like: nothing is known of how those
# travel. What a database computes by itself is not copied.
_COLUMNS: Final = r"""
SELECT c.relname::text AS table_name,
    array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS columns,
    array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS types,
    c.relkind = 'r' AND count(*) FILTER (
        WHERE a.attnotnull AND a.attgenerated = '' AND (
            a.attname = 'region_code' AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)
            OR a.attname = 'shard' AND a.atttypid IN ('integer'::regtype, 'bigint'::regtype)
        )
    ) = 2 AS is_of_shards
FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'm', 'f')
    AND (c.relname LIKE 'rows\_%' OR c.relname LIKE 'effects\_%' OR c.relname = ANY ($1::text[]))
GROUP BY c.relname, c.relkind ORDER BY c.relname
"""


@dataclass(frozen=True)
class Layouts:
    """The tables of a database that travel, each kind in the order of the names."""

    by_seq: tuple[TableLayout, ...]
    """The datasets' tables: by `seq`, in rounds."""
    by_time: tuple[TableLayout, ...]
    whole: tuple[TableLayout, ...]

    @property
    def all(self) -> tuple[TableLayout, ...]:
        """All of them."""
        return self.by_seq + self.by_time + self.whole

    def names(self) -> frozenset[str]:
        """Names of all of them."""
        return frozenset(layout.table for layout in self.all)


async def read_layouts(connection: Connection, shard_tables: Sequence[ShardTable]) -> Layouts:
    """Looks into the catalog, in the connection's transaction.

    Raises `SchemaDiffers` when there is a table of which nothing is known how it travels.
    """
    names = [entry.table.name for entry in shard_tables]
    found: list[TableLayout] = []
    for name, columns, types, is_of_shards in await fetch_all(connection, _COLUMNS, names):
        if not is_of_shards and name.startswith(EFFECTS_PREFIX):
            raise _untagged(name)
        found.append(TableLayout(name, tuple(columns or ()), tuple(types or ())))
    return arrange(found, shard_tables)


async def warm(connections: MoveConnections, shard_tables: Sequence[ShardTable]) -> None:
    """Opens a connection for a last round ahead of it, and lets its server read the catalog: writers will wait."""
    async with connections.take(is_urgent=True) as connection:
        await read_layouts(connection, shard_tables)


def arrange(layouts: Iterable[TableLayout], shard_tables: Sequence[ShardTable]) -> Layouts:
    """Sorts tables by the way they travel; a table whose way is not known here is refused (law L8)."""
    ways = {entry.table.name: entry.travels for entry in shard_tables}
    by_seq: list[TableLayout] = []
    others: dict[Travels, list[TableLayout]] = {Travels.BY_TIME: [], Travels.WHOLE: []}
    for layout in layouts:
        way = ways.get(layout.table)
        if way is not None:
            others[way].append(layout)
        elif layout.table.startswith(EFFECTS_PREFIX):
            if not {"region_code", "shard"} <= set(layout.columns):
                raise _untagged(layout.table)
            others[Travels.WHOLE].append(layout)
        elif layout.table.startswith("rows_") and {"region_code", "key", "shard", "seq"} <= set(layout.columns):
            by_seq.append(layout)
        else:
            raise SchemaDiffers(f"table {layout.table} belongs to no dataset, and nothing is known of how it travels")
    return Layouts(tuple(by_seq), tuple(others[Travels.BY_TIME]), tuple(others[Travels.WHOLE]))


def _untagged(table: str) -> SchemaDiffers:
    return SchemaDiffers(
        f"table {table} is a job's by its name, and no shard could take its rows along: it must be a plain table with"
        " columns region_code (text) and shard (integer), both NOT NULL"
    )


def check_target(source: Layouts, target: Layouts) -> None:
    """Raises `SchemaDiffers` unless the target has every column of the source with its type; it may have more."""
    here = {layout.table: dict(zip(layout.columns, layout.types, strict=True)) for layout in target.all}
    for layout in source.all:
        if layout.table not in here:
            raise SchemaDiffers(f"table {layout.table} is missing at the target")
        _check_columns(layout, here[layout.table])


def _check_columns(layout: TableLayout, here: Mapping[str, str]) -> None:
    for column, sql_type in zip(layout.columns, layout.types, strict=True):
        if column not in here:
            raise SchemaDiffers(f"column {column} of table {layout.table} is missing at the target")
        if here[column] != sql_type:
            raise SchemaDiffers(
                f"column {column} of table {layout.table} has type {here[column]} at the target,"
                f" {sql_type} at the source"
            )


def quote(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string as SQL has it; the sessions of moves have standard_conforming_strings."""
    return "'" + text.replace("'", "''") + "'"


def column_list(layout: TableLayout, prefix: str = "") -> str:
    """The columns, in the order of the copy."""
    return ", ".join(prefix + quote(column) for column in layout.columns)
