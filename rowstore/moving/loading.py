"""Loads slices into the target's tables, in a transaction that the caller commits.

How a slice goes in depends on its table:
- rows below the first pass's limit: straight into the table;
- newer rows: by way of a temporary table, replacing what has the same key;
- what travels by time: by way of a temporary table, leaving what is there, since a range's ends come twice;
- what travels whole: in place of what was there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from policy.errors import DatabaseUnavailable, DigestMismatch, RegiongateError
from rowstore.moving.connections import Watch, fetch_one, run
from rowstore.moving.digest import add, digest_sql, digest_where, in_sequence, in_shard, make_digest, subtract
from rowstore.moving.layout import column_list, quote
from rowstore.moving.model import End, SliceEnd, SliceStart

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from rowstore.database import Connection
    from rowstore.moving.layout import Layouts
    from rowstore.moving.model import ExportPart, MoveStep, ShardDigest, TableLayout
    from rowstore.moving.progress import Progress

SOURCE_SECONDS: Final = 60.0
"""How long the source may send nothing."""

_STAGE: Final = "move_stage"


class Incoming:
    """The parts of an export, none of which is waited for without end."""

    def __init__(self, parts: AsyncIterator[ExportPart]) -> None:
        self._parts = parts

    async def take(self) -> ExportPart:
        """The next part; raises `DatabaseUnavailable` when none comes."""
        try:
            async with asyncio.timeout(SOURCE_SECONDS):
                return await anext(self._parts)
        except TimeoutError:
            why = "the source has fallen silent"
        except StopAsyncIteration:
            why = "the export has broken off"
        raise DatabaseUnavailable(why)


class Loader:
    """Loads what belongs into one transaction."""

    def __init__(self, connection: Connection, step: MoveStep, source: Layouts, progress: Progress) -> None:
        self._connection = connection
        self._shard = in_shard(step.region_code, step.shard)
        self._source = source
        self._layouts = {layout.table: layout for layout in source.all}
        self._progress = progress
        self._size = 0

    async def load(self, part: ExportPart, incoming: Incoming) -> End | None:
        """Loads slices from `part` on, until the source says that all tables are complete up to some point.

        Updates the progress. Returns the end, when that comes first; raises `DigestMismatch`.
        """
        while not isinstance(part, End):
            if not isinstance(part, SliceStart) or part.table not in self._layouts:
                raise RegiongateError("the export is not in order")
            end = await self._load_slice(part, incoming)
            if end.through_seq is not None:
                self._progress.copied_seq = end.through_seq
                self._progress.source_seq = max(self._progress.source_seq, end.through_seq)
                return None
            if end.through_time is not None:
                self._progress.copied_time = end.through_time
                return None
            part = await incoming.take()
        self._progress.source_seq = max(self._progress.source_seq, part.last_seq)
        return part

    async def _load_slice(self, start: SliceStart, incoming: Incoming) -> SliceEnd:
        layout = self._layouts[start.table]
        if layout in self._source.by_time:
            end, found = await self._add_missing(layout, incoming)
        elif layout in self._source.whole:
            end, found = await self._replace_all(layout, incoming)
        elif start.through_seq is None:
            raise RegiongateError("the export does not say how far a slice goes")
        elif start.through_seq <= (self._progress.first_pass_seq or 0):
            end, found = await self._copy_straight(layout, start.through_seq, incoming)
        else:
            end, found = await self._replace_by_key(layout, start.through_seq, incoming)
        if found != end.digest:
            raise DigestMismatch(f"rows of table {layout.table} did not arrive as they were sent")
        return end

    # ---- the ways in ------------------------------------------------------------------------------------------------

    async def _copy_straight(
        self, layout: TableLayout, through: int, incoming: Incoming
    ) -> tuple[SliceEnd, ShardDigest]:
        end = await self._copy(layout.table, layout, incoming)
        found = await self._digest_range(layout, through)
        self._count(found)
        return end, found

    async def _replace_by_key(
        self, layout: TableLayout, through: int, incoming: Incoming
    ) -> tuple[SliceEnd, ShardDigest]:
        end = await self._stage(layout, incoming)
        replaced = await self._digest_replaced(layout)
        sets = ", ".join(f"{quote(name)} = excluded.{quote(name)}" for name in layout.columns)
        await self._unstage(layout, f"(region_code, key) DO UPDATE SET {sets}")
        found = await self._digest_range(layout, through)
        self._count(found)
        self._progress.total = subtract(self._progress.total, replaced)
        return end, found

    async def _add_missing(self, layout: TableLayout, incoming: Incoming) -> tuple[SliceEnd, ShardDigest]:
        end = await self._stage(layout, incoming)
        found = await self._digest_stage(layout)
        await self._unstage(layout, "DO NOTHING")
        return end, found

    async def _replace_all(self, layout: TableLayout, incoming: Incoming) -> tuple[SliceEnd, ShardDigest]:
        await self._run(f"DELETE FROM {quote(layout.table)} WHERE {self._shard}")  # noqa: S608 (quoted)
        end = await self._copy(layout.table, layout, incoming)
        return end, await digest_where(self._connection, layout, self._shard)

    # ---- their pieces -----------------------------------------------------------------------------------------------

    async def _stage(self, layout: TableLayout, incoming: Incoming) -> SliceEnd:
        """Copies into a temporary table, which ends with the transaction, or before the next slice."""
        columns, table = column_list(layout), quote(layout.table)
        await self._run(f"DROP TABLE IF EXISTS pg_temp.{_STAGE}")
        await self._run(
            f"CREATE TEMP TABLE {_STAGE} ON COMMIT DROP AS SELECT {columns} FROM {table} WITH NO DATA"  # noqa: S608 (quoted)
        )
        return await self._copy(_STAGE, layout, incoming)

    async def _unstage(self, layout: TableLayout, on_conflict: str) -> None:
        columns = column_list(layout)
        await self._run(
            f"INSERT INTO {quote(layout.table)} ({columns}) SELECT {columns} FROM pg_temp.{_STAGE}"  # noqa: S608 (quoted)
            f" ON CONFLICT {on_conflict}"
        )

    async def _digest_stage(self, layout: TableLayout) -> ShardDigest:
        statement = f"SELECT {digest_sql(layout)} FROM pg_temp.{_STAGE}"  # noqa: S608 (ours)
        return make_digest(*await fetch_one(self._connection, statement))

    async def _digest_replaced(self, layout: TableLayout) -> ShardDigest:
        """Of the rows that will be replaced: each looked up by its key, whatever the planner knows of either table."""
        statement = f"""
            SELECT {digest_sql(layout)} FROM (
                SELECT old.* FROM pg_temp.{_STAGE} AS new CROSS JOIN LATERAL (
                    SELECT * FROM {quote(layout.table)} AS t
                    WHERE t.region_code = new.region_code AND t.key = new.key LIMIT 1
                ) AS old
            ) AS replaced
            """  # noqa: S608 (quoted)
        return make_digest(*await fetch_one(self._connection, statement))

    async def _digest_range(self, layout: TableLayout, through: int) -> ShardDigest:
        """Of what the table now has in the slice's range."""
        condition = f"{self._shard} AND {in_sequence(self._progress.copied_seq, through)}"
        return await digest_where(self._connection, layout, condition)

    def _count(self, found: ShardDigest) -> None:
        self._progress.total = add(self._progress.total, found)
        self._progress.rows_copied += found.rows

    async def _run(self, statement: str) -> None:
        await run(self._connection, statement)

    async def _copy(self, table: str, layout: TableLayout, incoming: Incoming) -> SliceEnd:
        """Hands the bytes of a slice on to the server, as they are; each row must be one of the slice's."""
        ends: list[SliceEnd] = []
        with Watch(self._connection) as watch:

            async def chunks() -> AsyncGenerator[bytes]:
                while not ends:
                    watch.pause()
                    part = await incoming.take()
                    watch.resume()
                    if isinstance(part, bytes):
                        self._progress.bytes_copied += len(part)
                        yield part
                    elif isinstance(part, SliceEnd):
                        ends.append(part)
                    else:
                        raise RegiongateError("the export is not in order")

            status: str = await self._connection.copy_to_table(
                table, source=chunks(), columns=layout.columns, format="binary"
            )
        if int(status.rpartition(" ")[2]) != ends[0].digest.rows:
            raise DigestMismatch(f"rows of table {layout.table} did not arrive as they were sent")
        return ends[0]
