"""The row store of one IDC: what a gateway reads and writes.

Every call is judged by the fences of its shards inside its own statement, and commits by itself (laws L2, L3, L4): a
gateway that was paused, or decides by an old table, reads and writes nothing that this IDC may not serve. How each
statement keeps that is told in `rowstore.write_statements`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rowstore import listing
from rowstore.fences import Fences
from rowstore.model import ListPage
from rowstore.reading import Reader
from rowstore.row_moves import RowMoves
from rowstore.tables import dataset_table
from rowstore.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from policy.model import Dataset
    from rowstore.database import Database
    from rowstore.filter import Filter
    from rowstore.model import ReadKey, ReadOutcome, RowWrite, ShardEpoch, WriteOutcome

MAX_DATASETS: Final = 1024
"""Revisions of datasets that are kept ready."""

MAX_FORGOTTEN: Final = 10_000
"""Requests that one call forgets: it shall not hold up the writes beside it."""

_FORGET: Final = """
WITH forgotten AS (
    DELETE FROM write_requests WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM write_requests AS w
        WHERE update_time < now() - $1::interval AND NOT EXISTS (
            SELECT FROM write_requests AS newer
            WHERE (newer.region_code, newer.shard, newer.request_id, newer.dataset)
                = (w.region_code, w.shard, w.request_id, w.dataset) AND newer.update_time >= now() - $1::interval
        )
        LIMIT $2 FOR UPDATE SKIP LOCKED
    )) RETURNING 1
)
SELECT count(*) FROM forgotten
"""


class RowStore:
    """Reads and writes rows in one IDC's database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.fences = Fences(database)
        self.moves = RowMoves(database)
        # By identity, because this is looked up for every statement; the entry keeps its dataset alive.
        self._desks: dict[int, _Desk] = {}

    async def read(self, dataset: Dataset, keys: Sequence[ReadKey]) -> list[ReadOutcome]:
        """Reads rows in one statement; outcomes in the order of the keys.

        A shard answers while it is serving or draining, at the epoch that the key names. Raises `DatabaseUnavailable`.
        """
        if not keys:
            return []
        return await self._desk(dataset).reader.read(keys)

    async def write(self, dataset: Dataset, writes: Sequence[RowWrite]) -> list[WriteOutcome]:
        """Writes rows, no key twice; outcomes in the order of the writes.

        Rows without a condition commit together, so do those that must not exist, and those that must have a version.
        One row's outcome leaves the others alone. A row counts as written only by its `Written`: after an error, or a
        cancellation, each may be written or not, and a request_id tells when it is tried again.

        Raises:
            DatabaseUnavailable: the database does not answer, or has no such table or column yet.
        """
        if not writes:
            return []
        return await self._desk(dataset).writer.write(writes)

    async def list_page(
        self,
        dataset: Dataset,
        shards: Sequence[ShardEpoch],
        *,
        after: str | int | None,
        condition: Filter | None,
        limit: int,
    ) -> ListPage:
        """Reads live rows of some shards of one RegionCode in key order.

        Args:
            dataset: The dataset.
            shards: All of one RegionCode, none twice.
            after: Only rows with a key above this one.
            condition: Only rows for which it is true.
            limit: Most rows to return, at least 1.

        Returns:
            The page. It has no rows when it names shards that were missed, or awaits a row.

        Raises:
            DatabaseUnavailable: the database does not answer, or takes too long to find so many rows that fit.
        """
        if not shards:
            return ListPage((), more=False)
        return await listing.list_page(
            self._database, dataset_table(dataset), shards, after=after, condition=condition, limit=limit
        )

    async def count_rows(self, dataset: Dataset) -> dict[tuple[str, int], int]:
        """Live rows of each RegionCode and shard as they lie in the database, whatever the fences say: for a person.

        Reads the whole table. Raises `DatabaseUnavailable`.
        """
        return await listing.count_rows(self._database, dataset_table(dataset))

    async def forget_requests(self, older_than: timedelta) -> int:
        """Forgets requests that no retry can ask for any more, a bounded number at a time; returns how many.

        Raises `DatabaseUnavailable`.
        """
        (record,) = await self._database.fetch(_FORGET, older_than, MAX_FORGOTTEN)
        return record[0]

    def _desk(self, dataset: Dataset) -> _Desk:
        desk = self._desks.get(id(dataset))
        if desk is None:
            if len(self._desks) >= MAX_DATASETS:
                del self._desks[next(iter(self._desks))]
            table = dataset_table(dataset)
            desk = _Desk(dataset, Reader(self._database, table), Writer(self._database, dataset, table))
            self._desks[id(dataset)] = desk
        return desk


class _Desk(NamedTuple):
    """What serves one revision of a dataset."""

    dataset: Dataset
    reader: Reader
    writer: Writer
