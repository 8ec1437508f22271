"""Reads a shard's changes page by page, each in one statement.

A page is the fence and the rows above a sequence, seen in one snapshot. Sequence order is commit order inside a shard,
so nothing can appear later below what a page has shown, and no page is read inside a transaction. A shard that this IDC
may not read, or not at the claim's epoch, gives no page at all, but `ClaimLost`.

The limit counts deletions, too, whether or not the job is given them: a page costs what it reads, also where a million
rows have been deleted.
"""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, BigInteger, Integer, Text, bindparam, func, literal_column, select, true

from policy.model import KeyType
from regionjobs.rows import DELETED, FENCE_SEQ, FIRST_VALUE, SEQ, RowPage, RowShape
from rowstore.compiling import compile_statement, value_names
from rowstore.jobs.offsets import lost
from rowstore.read_statements import is_readable
from rowstore.tables import dataset_table, shard_fences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg
    from sqlalchemy import Select, Table

    from policy.model import Dataset
    from regionjobs.definition import Format
    from regionjobs.rows import Page
    from rowstore.compiling import Statement
    from rowstore.database import Database
    from rowstore.jobs.model import Claim

_CLAIMED = ("region_code", "shard", "epoch")


class ShardScanner:
    """Reads pages of one dataset for one job."""

    def __init__(self, database: Database, dataset: Dataset, *, format: Format, with_deleted: bool) -> None:  # noqa: A002 (as in the definition)
        self._database = database
        self._table = dataset_table(dataset)
        self._key_type = dataset.key_type
        self._format = format
        self._with_deleted = with_deleted
        names = value_names(self._table)
        self._places: Mapping[str, int] = {name: FIRST_VALUE + index for index, name in enumerate(names)}

    async def read(self, held: Claim, after: int, limit: int) -> Page:
        """The changes above sequence `after`, at most `limit`.

        Raises:
            ClaimLost: The shard is not this IDC's to read, or not at the claim's epoch.
            DatabaseUnavailable: The database does not answer, or lacks the table or a column yet.
        """
        statement = page_statement(self._table, with_deleted=self._with_deleted)
        arguments = (held.region_code, held.shard, held.epoch, after, limit)
        return self._page(held, await self._fetch(statement, arguments), limit)

    async def read_keys(self, held: Claim, keys: Sequence[str]) -> Page:
        """What lives under some keys of the shard now, in the order of the sequences: for rows that are tried again.

        Raises as `read` does.
        """
        statement = keys_statement(self._table, with_deleted=self._with_deleted)
        wanted = [int(key) for key in keys] if self._key_type is KeyType.INT64 else list(keys)
        arguments = (held.region_code, held.shard, held.epoch, wanted)
        # What lies between them was not looked at: such a page reaches no further than its last row.
        return self._page(held, await self._fetch(statement, arguments), 0)

    async def _fetch(self, statement: Statement, arguments: Sequence[Any]) -> list[asyncpg.Record]:
        return await self._database.fetch(statement.sql, *statement.arrange(arguments), is_repeatable=True)

    def _page(self, held: Claim, records: list[asyncpg.Record], limit: int) -> Page:
        if not records:
            raise lost(held)
        last = records[-1]
        fence_seq, last_seq = last[FENCE_SEQ], last[SEQ]
        shape = RowShape(held.region_code, held.shard, self._places)
        if last_seq is None:
            return RowPage(shape, (), last_seq=0, fence_seq=fence_seq, is_full=False)
        is_full = len(records) >= limit
        if not self._with_deleted and any(map(_is_deleted, records)):
            records = [record for record in records if not record[DELETED]]
        return RowPage(shape, records, last_seq=last_seq, fence_seq=fence_seq, is_full=is_full)


_is_deleted = itemgetter(DELETED)


def _columns(table: Table) -> list[Any]:
    """As `regionjobs.rows` finds them."""
    return [table.c.seq, table.c.key, table.c.update_time, table.c.deleted, *(table.c[n] for n in value_names(table))]


def _fenced(rows: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """The fence's newest sequence beside each row; one record without a row when there is none, none without a fence.

    Rows are in order because the one fence is met in a nested loop: there is no other way to run a LATERAL.
    """
    page = rows.lateral("page")
    return (
        select(shard_fences.c.last_seq, *page.c)
        .select_from(shard_fences.outerjoin(page, true()))
        .where(
            shard_fences.c.region_code == bindparam("region_code", type_=Text),
            shard_fences.c.shard == bindparam("shard", type_=Integer),
            shard_fences.c.epoch == bindparam("epoch", type_=BigInteger),
            is_readable(shard_fences.c.mode),
        )
    )


def _rows(table: Table, *, with_deleted: bool) -> Select[*tuple[Any, ...]]:
    """The rows of the fence's shard."""
    rows = select(*_columns(table)).where(
        table.c.region_code == shard_fences.c.region_code, table.c.shard == shard_fences.c.shard
    )
    # A tombstone without a finite time keeps the place of a row that is on its way here: nothing was deleted.
    return rows.where(func.isfinite(table.c.update_time)) if with_deleted else rows


@lru_cache(maxsize=256)
def page_statement(table: Table, *, with_deleted: bool) -> Statement:
    """Arguments: region_code, shard, epoch, after, limit."""
    page = (
        _rows(table, with_deleted=with_deleted)
        # The index is partial, and asks to be asked for.
        .where(table.c.seq > bindparam("after", type_=BigInteger), table.c.seq > literal_column("0"))
        .order_by(table.c.seq)
        .limit(bindparam("limit", type_=BigInteger))
    )
    return compile_statement(_fenced(page), (*_CLAIMED, "after", "limit"))


@lru_cache(maxsize=256)
def keys_statement(table: Table, *, with_deleted: bool) -> Statement:
    """Arguments: region_code, shard, epoch, keys."""
    is_wanted = table.c.key == func.any(bindparam("keys", type_=ARRAY(table.c.key.type)))
    page = _rows(table, with_deleted=with_deleted).where(is_wanted).order_by(table.c.seq)
    if not with_deleted:
        page = page.where(~table.c.deleted)
    return compile_statement(_fenced(page), (*_CLAIMED, "keys"))
