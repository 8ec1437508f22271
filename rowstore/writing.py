"""Writes: sorts them by condition and shard, runs one statement for each condition, and says what became of each row.

A statement answers for the rows that it wrote. What it did not write is rare, and looked into by a second statement
with a fresh snapshot: a fence that does not let pass, a replay, or another version than demanded. A row for which none
of these holds any more (a fence opened in between, a row changed back) is tried again, a bounded number of times.
"""

from __future__ import annotations

from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import asyncpg

from policy.errors import DatabaseUnavailable
from rowstore import statements
from rowstore.model import FenceMiss, FenceMode, VersionMismatch, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Table

    from policy.model import Dataset
    from rowstore.database import Database
    from rowstore.model import RowWrite, WriteOutcome
    from rowstore.statements import Statement

    Shard = tuple[str, int, int]
    Outcomes = list[WriteOutcome | None]
    Parts = dict[tuple[str, int, str], int]
    """Which part of a request, by RegionCode, shard and request_id, a statement makes; 0 where nothing is said."""

MAX_ROUNDS: Final = 4
"""Statements for one row before the store gives up on it."""

NEVER: Final = datetime.min.replace(tzinfo=UTC)

_SORT_KEY: Final = itemgetter(0, 1, 2, 3)
_REQUESTS_INDEX: Final = "write_requests_pkey"


class Writer:
    """Writes rows of one dataset."""

    def __init__(self, database: Database, dataset: Dataset, table: Table) -> None:
        self._database = database
        self._table = table
        self._names = statements.value_names(table)
        self._empty = (None,) * len(self._names)
        name = dataset.name
        self._upsert_forgetful = statements.upsert_forgetful(table)
        self._upsert = statements.upsert(table, name)
        self._insert = statements.insert_absent(table, name)
        self._update = statements.update_present(table, name)
        self._is_done = {self._upsert_forgetful.sql: _all_done, self._upsert.sql: _request_done}
        """What a statement's records say of a row; what the other two say is its sequence."""
        self._diagnose = statements.diagnose(table, name)

    async def write(self, writes: Sequence[RowWrite]) -> list[WriteOutcome]:
        """Writes rows; outcomes in their order. See `rowstore.store.RowStore.write`."""
        outcomes: Outcomes = [None] * len(writes)
        pending: Sequence[int] = range(len(writes))
        parts: Parts = {}
        for _ in range(MAX_ROUNDS):
            unsettled: list[int] = []
            for statement, indexes in self._split(writes, pending):
                unsettled.extend(await self._run(statement, writes, indexes, parts, outcomes))
            if not unsettled:
                return outcomes  # pyright: ignore[reportReturnType]: every one is settled
            pending = await self._explain(writes, unsettled, parts, outcomes)
            if not pending:
                return outcomes  # pyright: ignore[reportReturnType]: every one is settled
        raise DatabaseUnavailable("the rows change faster than they can be written")

    def _split(self, writes: Sequence[RowWrite], pending: Sequence[int]) -> list[tuple[Statement, list[int]]]:
        """The statements to run, and the indexes of their rows, sorted by shard and key."""
        plain: list[int] = []
        inserts: list[int] = []
        updates: list[int] = []
        has_requests = False
        for index in pending:
            write = writes[index]
            if write[5] is None:
                plain.append(index)
                if write[6]:
                    has_requests = True
            elif write[5] == 0:
                inserts.append(index)
            else:
                updates.append(index)
        parts = (
            (self._upsert if has_requests else self._upsert_forgetful, plain),
            (self._insert, inserts),
            (self._update, updates),
        )
        for _, indexes in parts:
            indexes.sort(key=lambda index: _SORT_KEY(writes[index]))
        return [part for part in parts if part[1]]

    async def _run(
        self, statement: Statement, writes: Sequence[RowWrite], indexes: list[int], parts: Parts, outcomes: Outcomes
    ) -> list[int]:
        """Runs one statement; settles the rows that it wrote and returns the others."""
        shards, offsets = _number(writes, indexes)
        arguments = self._arguments(writes, indexes, shards, offsets, parts)
        try:
            records = await self._database.fetch(statement.sql, *statement.arrange(arguments))
        except asyncpg.UniqueViolationError as error:
            if getattr(error, "constraint_name", "") == _REQUESTS_INDEX:
                # A conditional write of a request that has been performed already: nothing at all was written.
                return indexes
            failure = DatabaseUnavailable("the database holds a sequence twice")
        else:
            lasts: dict[Shard, asyncpg.Record] = {(record[0], record[1], record[2]): record for record in records}
            return _settle(
                writes, indexes, offsets, lasts, is_done=self._is_done.get(statement.sql, _row_done), outcomes=outcomes
            )
        raise failure

    def _arguments(
        self,
        writes: Sequence[RowWrite],
        indexes: list[int],
        shards: dict[Shard, int],
        offsets: list[int],
        parts: Parts,
    ) -> list[Sequence[object]]:
        """Arrays in the order of `statements.write_arguments`."""
        rows = [writes[index] for index in indexes]
        columns = zip(*map(self._pick_values, rows), strict=True) if self._names else ()
        return [
            [shard[0] for shard in shards],
            [shard[1] for shard in shards],
            [shard[2] for shard in shards],
            list(shards.values()),
            [row[0] for row in rows],
            [row[1] for row in rows],
            [row[2] for row in rows],
            offsets,
            [row[3] for row in rows],
            [row[4] is None for row in rows],
            [row[6] for row in rows],
            [parts.get((row[0], row[1], row[6]), 0) for row in rows] if parts else [0] * len(rows),
            [row[5] for row in rows],
            *columns,
        ]

    def _pick_values(self, write: RowWrite) -> tuple[object, ...]:
        """The columns of a row in the order of the table; of a tombstone nothing stays."""
        values = write.values
        return self._empty if values is None else tuple([values.get(name) for name in self._names])

    async def _explain(
        self, writes: Sequence[RowWrite], indexes: Sequence[int], parts: Parts, outcomes: Outcomes
    ) -> list[int]:
        """Settles rows that were not written, as far as the database says why, and returns the others.

        A row that its request has not written, though it has written others, makes the next part of the request: were
        somebody else to add to it in the meantime, the unique index would say so.
        """
        rows = [writes[index] for index in indexes]
        records = await self._database.fetch(
            self._diagnose.sql,
            *self._diagnose.arrange(
                ([row[0] for row in rows], [row[1] for row in rows], [row[3] for row in rows], [row[6] for row in rows])
            ),
            is_repeatable=True,
        )
        unexplained: list[int] = []
        for ordinal, mode, epoch, done_seq, done_time, last_part, version in records:
            index, row = indexes[ordinal - 1], rows[ordinal - 1]
            if mode != FenceMode.SERVING or epoch != row.epoch:
                # First of all: without the fence nothing else here can be trusted (law L2).
                outcomes[index] = FenceMiss(FenceMode(mode) if mode else None, epoch or 0)
            elif done_seq is not None:
                outcomes[index] = Written(done_seq, done_time, is_replay=True)
            elif row.if_version is not None and row.if_version != (version or 0):
                outcomes[index] = VersionMismatch(version or 0)
            else:
                unexplained.append(index)
                if last_part is not None:
                    parts[(row.region_code, row.shard, row.request_id)] = last_part + 1
        return unexplained


def _number(writes: Sequence[RowWrite], indexes: list[int]) -> tuple[dict[Shard, int], list[int]]:
    """Rows of each shard, and for each row how far its sequence is below its shard's last one (0 or less)."""
    shards: dict[Shard, int] = {}
    ranks: list[int] = []
    names: list[Shard] = []
    for index in indexes:
        write = writes[index]
        shard = (write[0], write[1], write[2])
        rank = shards.get(shard, 0) + 1
        shards[shard] = rank
        ranks.append(rank)
        names.append(shard)
    return shards, [rank - shards[shard] for rank, shard in zip(ranks, names, strict=True)]


def _all_done(_write: RowWrite, _seq: int, _gathered: frozenset[object]) -> bool:
    return True


def _request_done(write: RowWrite, _seq: int, gathered: frozenset[object]) -> bool:
    return not write[6] or write[6] in gathered


def _row_done(_write: RowWrite, seq: int, gathered: frozenset[object]) -> bool:
    return seq in gathered


def _settle(
    writes: Sequence[RowWrite],
    indexes: list[int],
    offsets: list[int],
    fences: dict[Shard, asyncpg.Record],
    *,
    is_done: Callable[[RowWrite, int, frozenset[object]], bool],
    outcomes: Outcomes,
) -> list[int]:
    """Gives the rows that were written their outcome; returns the others. The rows are sorted by shard."""
    unsettled: list[int] = []
    shard: Shard | None = None
    fence: asyncpg.Record | None = None
    gathered: frozenset[object] = frozenset()
    last_seq, last_time = 0, NEVER
    for index, offset in zip(indexes, offsets, strict=True):
        write = writes[index]
        if shard is None or write[1] != shard[1] or write[0] != shard[0] or write[2] != shard[2]:
            shard = (write[0], write[1], write[2])
            fence = fences.get(shard)
            if fence is not None:
                last_seq, last_time = fence[3], fence[4]
                gathered = frozenset(fence[5] or ()) if is_done is not _all_done else frozenset()
        if fence is not None and is_done(write, last_seq + offset, gathered):
            outcomes[index] = Written(last_seq + offset, last_time)
        else:
            unsettled.append(index)
    return unsettled
