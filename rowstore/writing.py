"""Writes: sorts them by condition and lot, runs one statement for each condition, and says what became of each row.

A statement answers for the rows that it wrote. What it did not write is rare, and looked into by a second statement
with a fresh snapshot: a fence that does not let pass, a replay, or another version than demanded. A row for which none
of these holds any more (a fence opened in between, a row changed back) is tried again, a bounded number of times.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

import asyncpg

from policy.errors import DatabaseUnavailable
from rowstore import read_statements, write_statements
from rowstore.compiling import value_names
from rowstore.model import Arriving, FenceMiss, FenceMode, VersionMismatch, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy import Table

    from policy.model import Dataset
    from rowstore.compiling import Statement
    from rowstore.database import Database
    from rowstore.model import RowWrite, WriteOutcome

    Shard = tuple[str, int, int]
    Lot = tuple[str, int, int, str, bool]
    """Region code, shard, epoch, request_id, and whether its rows are deleted."""
    Lots = dict[Lot, list[int]]
    """Indexes of rows."""
    FindDone = Callable[[Lot, range, Sequence[object]], Collection[int]]
    """The sequences, of those of a lot's rows, that were written."""
    Outcomes = list[WriteOutcome | None]
    Parts = dict[tuple[str, int, str], int]
    """Which part of a request, by RegionCode, shard and request_id, a statement makes; 0 where nothing is said."""

MAX_ROUNDS: Final = 4
"""Statements for one row before the store gives up on it."""

_GATHERED: Final = 5
"""Where a record says what was done, when its statement tells."""

_REQUESTS_INDEX: Final = "write_requests_pkey"


class Writer:
    """Writes rows of one dataset."""

    def __init__(self, database: Database, dataset: Dataset, table: Table) -> None:
        self._database = database
        self._table = table
        self._names = value_names(table)
        name = dataset.name
        self._upsert_forgetful = write_statements.upsert_forgetful(table)
        self._upsert = write_statements.upsert(table, name)
        self._insert = write_statements.insert_absent(table, name)
        self._update = write_statements.update_present(table, name)
        self._find_done: dict[str, FindDone] = {self._upsert_forgetful.sql: _all_done, self._upsert.sql: _request_done}
        """What is done of a lot, by a statement's records; the other two gather sequences."""
        self._diagnose = read_statements.diagnose(table, name)

    async def write(self, writes: Sequence[RowWrite]) -> list[WriteOutcome]:
        """Writes rows; outcomes in their order. See `rowstore.store.RowStore.write`."""
        outcomes: Outcomes = [None] * len(writes)
        pending: Sequence[int] = range(len(writes))
        parts: Parts = {}
        for _ in range(MAX_ROUNDS):
            unsettled: list[int] = []
            for statement, lots in self._split(writes, pending):
                unsettled.extend(await self._run(statement, writes, lots, parts, outcomes))
            if not unsettled:
                return outcomes  # pyright: ignore[reportReturnType]: every one is settled
            pending = await self._explain(writes, unsettled, parts, outcomes)
            if not pending:
                return outcomes  # pyright: ignore[reportReturnType]: every one is settled
        raise DatabaseUnavailable("the rows change faster than they can be written")

    def _split(self, writes: Sequence[RowWrite], pending: Sequence[int]) -> list[tuple[Statement, Lots]]:
        """The statements to run, and the indexes of their rows by lot, in the order of the shards."""
        plain: Lots = {}
        inserts: Lots = {}
        updates: Lots = {}
        for index in pending:
            region_code, shard, epoch, _, values, if_version, request_id = writes[index]
            lots = plain if if_version is None else updates if if_version else inserts
            lot = region_code, shard, epoch, request_id, values is None
            if lot in lots:
                lots[lot].append(index)
            else:
                lots[lot] = [index]
        unconditional = self._upsert if any(lot[3] for lot in plain) else self._upsert_forgetful
        parts = (unconditional, plain), (self._insert, inserts), (self._update, updates)
        # Fences are locked in the order of the shards, and rows numbered in it.
        return [(statement, dict(sorted(lots.items()))) for statement, lots in parts if lots]

    async def _run(
        self, statement: Statement, writes: Sequence[RowWrite], lots: Lots, parts: Parts, outcomes: Outcomes
    ) -> list[int]:
        """Runs one statement; settles the rows that it wrote and returns the others."""
        counts: dict[Shard, int] = {}
        for lot, indexes in lots.items():
            counts[lot[:3]] = counts.get(lot[:3], 0) + len(indexes)
        arguments = self._arguments(writes, lots, counts, parts)
        try:
            records = await self._database.fetch(statement.sql, *statement.arrange(arguments))
        except asyncpg.UniqueViolationError as error:
            if getattr(error, "constraint_name", "") == _REQUESTS_INDEX:
                # A conditional write of a request that has been performed already: nothing at all was written.
                return [index for indexes in lots.values() for index in indexes]
            failure = DatabaseUnavailable("the database holds a sequence twice")
        else:
            fences: dict[Shard, asyncpg.Record] = {(record[0], record[1], record[2]): record for record in records}
            find_done = self._find_done.get(statement.sql, _rows_done)
            return _settle(lots, counts, fences, find_done=find_done, outcomes=outcomes)
        raise failure

    def _arguments(
        self, writes: Sequence[RowWrite], lots: Lots, counts: dict[Shard, int], parts: Parts
    ) -> list[Sequence[object]]:
        """Arrays in the order of `write_statements.write_arguments`."""
        places = {shard: place for place, shard in enumerate(counts, 1)}
        _, _, _, keys, values, if_versions, _ = zip(
            *[writes[index] for indexes in lots.values() for index in indexes], strict=True
        )
        return [
            *zip(*counts, strict=True),
            list(counts.values()),
            list(accumulate(counts.values())),
            [places[lot[:3]] for lot in lots],
            [lot[3] for lot in lots],
            [parts.get((lot[0], lot[1], lot[3]), 0) for lot in lots],
            [lot[4] for lot in lots],
            [number for number, indexes in enumerate(lots.values(), 1) for _ in indexes],
            keys,
            if_versions,
            # Of a tombstone nothing stays.
            *([None if row is None else row.get(name) for row in values] for name in self._names),
        ]

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
        for ordinal, mode, epoch, done_seq, done_time, last_part, version, arriving in records:
            index, row = indexes[ordinal - 1], rows[ordinal - 1]
            if mode != FenceMode.SERVING or epoch != row.epoch:
                # First of all: without the fence nothing else here can be trusted (law L2).
                outcomes[index] = FenceMiss(FenceMode(mode) if mode else None, epoch or 0)
            elif done_seq is not None:
                outcomes[index] = Written(done_seq, done_time, is_replay=True)
            elif row.if_version is not None and arriving is not None and not version:
                # Absent or not: whether the row has come, its old home decides.
                outcomes[index] = Arriving()
            elif row.if_version is not None and row.if_version != (version or 0):
                outcomes[index] = VersionMismatch(version or 0)
            else:
                unexplained.append(index)
                if last_part is not None:
                    parts[(row.region_code, row.shard, row.request_id)] = last_part + 1
        return unexplained


def _all_done(_lot: Lot, seqs: range, _gathered: Sequence[object]) -> Collection[int]:
    return seqs


def _request_done(lot: Lot, seqs: range, gathered: Sequence[object]) -> Collection[int]:
    return seqs if not lot[3] or lot[3] in gathered else ()


def _rows_done(_lot: Lot, _seqs: range, gathered: Sequence[object]) -> Collection[int]:
    return frozenset(gathered)  # pyright: ignore[reportReturnType]: what these statements gather are sequences


def _settle(
    lots: Lots,
    counts: dict[Shard, int],
    fences: dict[Shard, asyncpg.Record],
    *,
    find_done: FindDone,
    outcomes: Outcomes,
) -> list[int]:
    """Gives the rows that were written their outcome; returns the others."""
    unsettled: list[int] = []
    nexts: dict[Shard, int] = {shard: fence[3] - counts[shard] + 1 for shard, fence in fences.items()}
    for lot, indexes in lots.items():
        shard = lot[:3]
        fence = fences.get(shard)
        if fence is None:
            unsettled += indexes
            continue
        first, time = nexts[shard], fence[4]
        seqs = range(first, first + len(indexes))
        nexts[shard] = seqs.stop
        done = find_done(lot, seqs, fence[5] or () if len(fence) > _GATHERED else ())
        if done is seqs:
            for index, seq in zip(indexes, seqs, strict=True):
                outcomes[index] = Written(seq, time)
            continue
        for index, seq in zip(indexes, seqs, strict=True):
            if seq in done:
                outcomes[index] = Written(seq, time)
            else:
                unsettled.append(index)
    return unsettled
