"""Pages of rows in key order, and counts, over some shards of one RegionCode.

Fences and rows are seen in one snapshot. When a fence does not let a read pass, no rows are returned at all: a page
with a hole in it would look like a whole one (law L3).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from sqlalchemy import ARRAY, BigInteger, Integer, Text, and_, bindparam, case, func, literal_column, select, true

from rowstore.compiling import compile_statement, literal, rows_of, value_names
from rowstore.filter import build_condition
from rowstore.model import ListPage, StoredRow
from rowstore.read_statements import is_readable
from rowstore.tables import row_arrivals, shard_fences, table_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from sqlalchemy import FromClause, Select, Table

    from rowstore.compiling import Statement
    from rowstore.database import Database
    from rowstore.filter import Filter, Shape
    from rowstore.model import ShardEpoch

_ARGUMENTS: Final = ("region_code", "shards", "epochs")


def _admitted() -> Select[Any]:
    """The shards asked for whose fences let a read pass."""
    asked = rows_of("asked", (("shard", "shards", Integer()), ("epoch", "epochs", BigInteger())))
    fence = (
        select(shard_fences.c.shard)
        .where(
            shard_fences.c.region_code == bindparam("region_code", type_=Text),
            shard_fences.c.shard == asked.c.shard,
            shard_fences.c.epoch == asked.c.epoch,
            is_readable(shard_fences.c.mode),
        )
        .limit(literal_column("1"))
        .lateral("fence")
    )
    return select(
        func.coalesce(func.array_agg(fence.c.shard), literal_column("'{}'::int[]")).label("shards")
    ).select_from(asked.join(fence, true()))


def _arriving(table: Table) -> FromClause:
    """A row when any row of the dataset is on its way into one of the shards asked for."""
    return (
        select(row_arrivals.c.move_id)
        .where(
            row_arrivals.c.region_code == bindparam("region_code", type_=Text),
            row_arrivals.c.shard == func.any(bindparam("shards", type_=ARRAY(Integer))),
            row_arrivals.c.dataset == literal(table.name.removeprefix(table_name(""))),
        )
        .limit(literal_column("1"))
        .subquery("arriving")
    )


@lru_cache(maxsize=256)
def page_statement(table: Table, shape: Shape | None, arguments: int, *, has_after: bool) -> Statement:
    """A record for each row: `let_pass` (null when every shard was, otherwise those that were), then the row.

    When a row is on its way into one of the shards, `is_awaiting` is true, and there are no rows.

    The rows come from the primary key in its order, so a page costs what it reads, wherever it begins.
    """
    admitted = _admitted().subquery("admitted")
    is_complete = func.cardinality(admitted.c.shards) == func.cardinality(bindparam("shards", type_=ARRAY(Integer)))
    arriving = _arriving(table)
    is_awaiting = select(func.count() > literal_column("0")).select_from(arriving).scalar_subquery()
    rows = select(table.c.key, table.c.seq, table.c.update_time, *(table.c[name] for name in value_names(table))).where(
        table.c.region_code == bindparam("region_code", type_=Text),
        table.c.shard == func.any(admitted.c.shards),
        ~table.c.deleted,
        and_(is_complete, ~is_awaiting),
    )
    names = (*_ARGUMENTS, "limit")
    if has_after:
        rows = rows.where(table.c.key > bindparam("after", type_=table.c.key.type))
        names = (*names, "after")
    if shape is not None:
        rows = rows.where(build_condition(shape, table))
        names = (*names, *(f"f{index}" for index in range(arguments)))
    page = rows.order_by(table.c.key).limit(bindparam("limit", type_=BigInteger)).lateral("page")
    let_pass = case((is_complete, literal_column("NULL::int[]")), else_=admitted.c.shards).label("let_pass")
    statement = select(let_pass, is_awaiting.label("is_awaiting"), *page.c).select_from(
        admitted.outerjoin(page, true())
    )
    return compile_statement(statement, names)


@lru_cache(maxsize=1024)
def _count_statement(table: Table) -> Statement:
    """A record for each shard that has live rows: region_code, shard, count."""
    statement = (
        select(table.c.region_code, table.c.shard, func.count())
        .where(~table.c.deleted)
        .group_by(table.c.region_code, table.c.shard)
    )
    return compile_statement(statement, ())


async def list_page(
    database: Database,
    table: Table,
    shards: Sequence[ShardEpoch],
    *,
    after: str | int | None,
    condition: Filter | None,
    limit: int,
) -> ListPage:
    """See `rowstore.store.RowStore.list_page`."""
    arguments: list[object] = [
        shards[0].region_code,
        [shard.shard for shard in shards],
        [shard.epoch for shard in shards],
        # One more than asked for tells whether there is more.
        limit + 1,
    ]
    if after is not None:
        arguments.append(after)
    if condition is not None:
        arguments.extend(condition.arguments)
    statement = page_statement(
        table,
        condition.shape if condition else None,
        len(condition.arguments) if condition else 0,
        has_after=after is not None,
    )
    records = await database.fetch(statement.sql, *statement.arrange(arguments), is_repeatable=True)
    let_pass = records[0][0]
    if let_pass is not None:
        return ListPage((), more=False, missed=tuple(shard for shard in shards if shard.shard not in let_pass))
    if records[0][1]:
        return ListPage((), more=False, is_awaiting=True)
    names = value_names(table)
    rows = tuple(
        StoredRow(shards[0].region_code, record[2], record[3], record[4], dict(zip(names, record[5:], strict=True)))
        for record in map(tuple, records)
        if record[2] is not None
    )
    return ListPage(rows[:limit], more=len(rows) > limit)


async def count_rows(database: Database, table: Table) -> dict[tuple[str, int], int]:
    """See `rowstore.store.RowStore.count_rows`."""
    statement = _count_statement(table)
    records = await database.fetch(statement.sql, is_repeatable=True)
    return {(region_code, shard): count for region_code, shard, count in records}
