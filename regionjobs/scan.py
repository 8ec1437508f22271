"""Reads a shard's changes page by page, each in one statement.

A page is the fence and the rows above a sequence, seen in one snapshot. Sequence order is commit order inside a shard,
so nothing can appear later below what a page has shown, and no page is read inside a transaction. A shard that this IDC
may not read, or not at the claim's epoch, gives no page at all, but `ClaimLost`.

The limit counts deletions, too, whether or not the job is given them: a page costs what it reads, also where a million
rows have been deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, TIMESTAMP, BigInteger, Integer, Text, bindparam, func, literal_column, select, true

from policy.errors import InvalidJob
from policy.model import Column, ColumnType, Dataset, KeyType
from regionjobs.definition import Format
from regionjobs.rows import DELETED, FENCE_SEQ, FIRST_VALUE, SEQ, RowPage, RowShape
from rowstore.compiling import compile_statement, value_names
from rowstore.jobs.offsets import lost
from rowstore.read_statements import is_readable
from rowstore.tables import dataset_table, shard_fences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg
    from sqlalchemy import ColumnElement, Select, Table

    from regionjobs.arrow import ArrowLayout
    from regionjobs.rows import Page
    from rowstore.compiling import Statement
    from rowstore.database import Database
    from rowstore.jobs.model import Claim

_is_deleted = itemgetter(DELETED)


class ShardScanner:
    """Reads pages of one dataset for one job; raises `InvalidJob` when Arrow is wanted and not installed."""

    def __init__(self, database: Database, dataset: Dataset, *, format: Format, with_deleted: bool) -> None:  # noqa: A002 (as in the definition)
        self._database = database
        self._with_deleted = with_deleted
        columns = tuple((column.name, column.type) for column in dataset.columns.values())
        self._reading = _reading(dataset.name, dataset.key_type, columns, format, with_deleted)

    async def read(self, held: Claim, after: int, limit: int) -> Page:
        """The changes above sequence `after`, at most `limit`.

        Raises:
            ClaimLost: The shard is not this IDC's to read, or not at the claim's epoch.
            DatabaseUnavailable: The database does not answer, or lacks the table or a column yet.
        """
        arguments = (held.region_code, held.shard, held.epoch, after, limit)
        return await self._fetch(held, self._reading.page, arguments, limit)

    async def read_again(self, held: Claim, seqs: Sequence[int]) -> Page:
        """The changes with some sequences, in their order: for rows that are tried again.

        A row that has changed since is not among them: it has another sequence, and its newer change is a matter of its
        own. Such a page reaches no further than its last row. Raises as `read` does.
        """
        arguments = (held.region_code, held.shard, held.epoch, list(seqs))
        return await self._fetch(held, self._reading.again, arguments, 0)

    async def _fetch(self, held: Claim, statement: Statement, arguments: Sequence[Any], limit: int) -> Page:
        records = await self._database.fetch(statement.sql, *statement.arrange(arguments), is_repeatable=True)
        if not records:
            raise lost(held)
        shape = RowShape(held.region_code, held.shard, self._reading.places, self._reading.times)
        layout = self._reading.layout
        if layout is None:
            return self._row_page(shape, records, limit)
        fence_seq, *parts = records[0]
        return layout.page(shape, parts, fence_seq=fence_seq, limit=limit, with_deleted=self._with_deleted)

    def _row_page(self, shape: RowShape, records: Sequence[asyncpg.Record], limit: int) -> Page:
        last = records[-1]
        fence_seq, last_seq = last[FENCE_SEQ], last[SEQ]
        if last_seq is None:
            # The fence alone: no rows.
            records, last_seq = (), 0
        is_full = len(records) >= limit
        if not self._with_deleted and any(map(_is_deleted, records)):
            records = [record for record in records if not record[DELETED]]
        return RowPage(shape, records, last_seq=last_seq, fence_seq=fence_seq, is_full=is_full)


# ---- the statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a dataset is read; made once for the same columns."""

    page: Statement
    """Arguments: region_code, shard, epoch, after, limit."""
    again: Statement
    """Arguments: region_code, shard, epoch, seqs."""
    places: Mapping[str, int]
    times: frozenset[str]
    layout: ArrowLayout | None


@lru_cache(maxsize=256)
def _reading(
    name: str,
    key_type: KeyType,
    columns: tuple[tuple[str, ColumnType], ...],
    format: Format,  # noqa: A002 (as in the definition)
    with_deleted: bool,
) -> _Reading:
    dataset = Dataset(name, key_type, {column: Column(column, column_type) for column, column_type in columns})
    table = dataset_table(dataset)
    layout = _arrow_layout(dataset) if format is Format.ARROW else None
    claimed = ("region_code", "shard", "epoch")
    page, again = (_fenced(made(table, with_deleted=with_deleted), layout) for made in (_page, _again))
    return _Reading(
        compile_statement(page, (*claimed, "after", "limit")),
        compile_statement(again, (*claimed, "seqs")),
        {column: FIRST_VALUE + index for index, column in enumerate(value_names(table))},
        frozenset(column for column, column_type in columns if column_type is ColumnType.TIMESTAMP),
        layout,
    )


def _arrow_layout(dataset: Dataset) -> ArrowLayout:
    """Imports what only this format needs."""
    try:
        from regionjobs.arrow import ArrowLayout  # noqa: PLC0415
    except ImportError as error:
        rule = 'format: "arrow" needs numpy and pyarrow; install the extra "arrow"'
        raise InvalidJob(rule, field_name="format") from error
    return ArrowLayout(dataset)


def _fenced(rows: Select[*tuple[Any, ...]], layout: ArrowLayout | None) -> Select[*tuple[Any, ...]]:
    """The fence's newest sequence beside each row, or beside the one record that Arrow is made of.

    Without rows there is one record; none without a fence that lets the read pass. Rows are in order because the one
    fence is met in a nested loop: there is no other way to run a LATERAL.
    """
    if layout is not None:
        ordered = rows.subquery("ordered")
        rows = select(*layout.aggregates(ordered)).select_from(ordered)
    page = rows.lateral("page")
    columns = page.c if layout is not None else map(_as_sent, page.c)
    return (
        select(shard_fences.c.last_seq, *columns)
        .select_from(shard_fences.outerjoin(page, true()))
        .where(
            shard_fences.c.region_code == bindparam("region_code", type_=Text),
            shard_fences.c.shard == bindparam("shard", type_=Integer),
            shard_fences.c.epoch == bindparam("epoch", type_=BigInteger),
            is_readable(shard_fences.c.mode),
        )
    )


def _as_sent(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Times as `regionjobs.rows` reads them."""
    return func.timestamptz_send(column) if isinstance(column.type, TIMESTAMP) else column


def _rows(table: Table, *, with_deleted: bool) -> Select[*tuple[Any, ...]]:
    """The rows of the fence's shard; the columns are as `regionjobs.rows` finds them."""
    values = (table.c[name] for name in value_names(table))
    rows = (
        select(table.c.seq, table.c.key, table.c.update_time, table.c.deleted, *values)
        .where(table.c.region_code == shard_fences.c.region_code, table.c.shard == shard_fences.c.shard)
        .order_by(table.c.seq)
        .correlate(shard_fences)
    )
    # A tombstone without a finite time keeps the place of a row that is on its way here: nothing was deleted.
    return rows.where(func.isfinite(table.c.update_time)) if with_deleted else rows


def _page(table: Table, *, with_deleted: bool) -> Select[*tuple[Any, ...]]:
    """The rows above a sequence. Arguments: after, limit."""
    is_above = table.c.seq > bindparam("after", type_=BigInteger)
    # The index is partial, and asks to be asked for.
    is_indexed = table.c.seq > literal_column("0")
    limit = bindparam("limit", type_=BigInteger)
    return _rows(table, with_deleted=with_deleted).where(is_above, is_indexed).limit(limit)


def _again(table: Table, *, with_deleted: bool) -> Select[*tuple[Any, ...]]:
    """The rows with some sequences. Arguments: seqs."""
    is_wanted = table.c.seq == func.any(bindparam("seqs", type_=ARRAY(BigInteger)))
    is_indexed = table.c.seq > literal_column("0")
    rows = _rows(table, with_deleted=with_deleted).where(is_wanted, is_indexed)
    return rows if with_deleted else rows.where(~table.c.deleted)
