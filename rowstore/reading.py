"""Reads by key: one statement for any number of keys, each judged by its shard's fence in the same snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rowstore import read_statements
from rowstore.compiling import value_names
from rowstore.model import Arriving, FenceMiss, FenceMode, Missing, StoredRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Table

    from rowstore.database import Database
    from rowstore.model import ReadKey, ReadOutcome

_MISSING = Missing()
_ARRIVING = Arriving()


class Reader:
    """Reads rows of one dataset."""

    def __init__(self, database: Database, table: Table) -> None:
        self._database = database
        self._names = value_names(table)
        self._one = read_statements.read_one(table)
        self._many = read_statements.read_many(table)

    async def read(self, keys: Sequence[ReadKey]) -> list[ReadOutcome]:
        """Reads rows; outcomes in the order of the keys. See `rowstore.store.RowStore.read`."""
        if len(keys) == 1:
            key = keys[0]
            records = await self._database.fetch(self._one.sql, *self._one.arrange(key), is_repeatable=True)
            if records:
                seq, update_time, *values = records[0]
                if seq is None:
                    return [_MISSING if update_time is None else _ARRIVING]
                return [self._row(key, seq, update_time, values)]
            # The fence refuses, and the statement below says why.
        records = await self._database.fetch(
            self._many.sql, *self._many.arrange(tuple(zip(*keys, strict=True))), is_repeatable=True
        )
        outcomes: list[ReadOutcome] = [_MISSING] * len(keys)
        for ordinal, refusal, seq, update_time, *values in records:
            index = ordinal - 1
            if refusal is not None:
                mode, _, epoch = refusal.partition(":")
                outcomes[index] = FenceMiss(FenceMode(mode), int(epoch)) if mode else FenceMiss(None, 0)
            elif seq is not None:
                outcomes[index] = self._row(keys[index], seq, update_time, values)
            elif update_time is not None:
                outcomes[index] = _ARRIVING
        return outcomes

    def _row(self, key: ReadKey, seq: int, update_time: datetime, values: list[object]) -> StoredRow:
        return StoredRow(key[0], key[3], seq, update_time, dict(zip(self._names, values, strict=True)))
