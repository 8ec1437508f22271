"""Reads by key: one statement for any number of keys, each judged by its shard's fence in the same snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rowstore import statements
from rowstore.model import FenceMiss, FenceMode, Missing, StoredRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Table

    from rowstore.database import Database
    from rowstore.model import ReadKey, ReadOutcome

_MISSING = Missing()


class Reader:
    """Reads rows of one dataset."""

    def __init__(self, database: Database, table: Table) -> None:
        self._database = database
        self._names = statements.value_names(table)
        self._one = statements.read_one(table)
        self._many = statements.read_many(table)

    async def read(self, keys: Sequence[ReadKey]) -> list[ReadOutcome]:
        """Reads rows; outcomes in the order of the keys. See `rowstore.store.RowStore.read`."""
        if len(keys) == 1:
            key = keys[0]
            records = await self._database.fetch(self._one.sql, *self._one.arrange(key), is_repeatable=True)
            return [self._outcome(key, tuple(records[0]))]
        records = await self._database.fetch(
            self._many.sql, *self._many.arrange(tuple(zip(*keys, strict=True))), is_repeatable=True
        )
        outcomes: list[ReadOutcome] = [_MISSING] * len(keys)
        for record in records:
            ordinal, *row = record
            outcomes[ordinal - 1] = self._outcome(keys[ordinal - 1], row)
        return outcomes

    def _outcome(self, key: ReadKey, record: Sequence[object]) -> ReadOutcome:
        refusal, seq, update_time = record[0], record[1], record[2]
        if refusal is not None:
            mode, _, epoch = str(refusal).partition(":")
            return FenceMiss(FenceMode(mode), int(epoch)) if mode else FenceMiss(None, 0)
        if seq is None:
            return _MISSING
        return StoredRow(
            key[0],
            key[3],
            seq,  # pyright: ignore[reportArgumentType]: bigint
            update_time,  # pyright: ignore[reportArgumentType]: timestamptz
            dict(zip(self._names, record[3:], strict=True)),
        )
