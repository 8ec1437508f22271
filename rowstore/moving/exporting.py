"""The source's side: sends a shard's rows in slices, each read in a snapshot of its own.

A slice holds the rows of one range of sequences, over all tables. Why it needs no long snapshot: sequence order is
commit order, so once a sequence is the shard's last one, all below are committed; and a row that changes later gets a
sequence above those that are being sent, and comes in a later round. Each slice first looks at the fence, and at the
tables: a column that was added meanwhile would be missed.

One task reads ahead of whoever takes the parts, up to a bounded number of bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from policy.errors import DatabaseUnavailable
from rowstore.model import FenceMode
from rowstore.moving.connections import SNAPSHOT, Watch, fetch_any, fetch_one, transaction
from rowstore.moving.digest import BY_TIME, digest_where, in_sequence, in_shard, in_time
from rowstore.moving.fence_steps import refusal
from rowstore.moving.layout import column_list, quote, read_layouts
from rowstore.moving.model import End, Head, SliceEnd, SliceStart

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from datetime import datetime

    from rowstore.database import Connection
    from rowstore.moving.connections import MoveConnections
    from rowstore.moving.layout import Layouts
    from rowstore.moving.model import ExportPart, MoveStep, TableLayout
    from rowstore.shard_tables import ShardTable

CHUNK_BYTES: Final = 256 * 1024
"""Small pieces of a COPY are joined until they have so many bytes."""
MAX_AHEAD: Final = 16
"""Parts that are read before somebody takes them."""
CONSUMER_SECONDS: Final = 60.0
"""How long somebody may take no part, before the export ends and its snapshot with it."""

SLICE_ROWS: Final = 20_000
"""Most rows in a slice."""
FIRST_SLICE_ROWS: Final = 256
"""Rows of a first slice, which tells how large rows are."""
SLICE_BYTES: Final = 16 * 1024 * 1024
"""Slices are made smaller when they have more bytes."""

MAX_ROUNDS: Final = 20
NEARLY: Final = 500
"""Changes that may be left for the final round."""

_FENCE: Final = (
    "SELECT epoch, mode, attempt, last_seq, last_time FROM shard_fences WHERE region_code = $1 AND shard = $2"
)


@dataclass(frozen=True)
class _Fence:
    """Where the source stands in a slice's snapshot."""

    last_seq: int
    last_time: datetime | None


class _Sent(NamedTuple):
    """What has been put into the queue."""

    rows: int
    bytes: int


async def export(
    connections: MoveConnections,
    step: MoveStep,
    shard_tables: Sequence[ShardTable],
    *,
    after_seq: int,
    after_time: datetime | None,
    is_final: bool,
) -> AsyncGenerator[ExportPart]:
    """See `rowstore.moving.Mover.export`."""
    parts: asyncio.Queue[ExportPart | None] = asyncio.Queue(MAX_AHEAD)
    reader = _Reader(connections, step, shard_tables, parts, is_final=is_final)
    task = asyncio.create_task(reader.run(after_seq, after_time))
    try:
        while (part := await parts.get()) is not None:
            yield part
        await task
    finally:
        if task.cancel():
            await asyncio.wait([task])


class _Reader:
    """Reads a shard and puts the parts into a queue; None comes last, whatever happens."""

    def __init__(
        self,
        connections: MoveConnections,
        step: MoveStep,
        shard_tables: Sequence[ShardTable],
        parts: asyncio.Queue[ExportPart | None],
        *,
        is_final: bool,
    ) -> None:
        self._connections = connections
        self._step = step
        self._shard = in_shard(step.region_code, step.shard)
        self._shard_tables = shard_tables
        self._parts = parts
        self._is_final = is_final
        self._slice_rows = FIRST_SLICE_ROWS
        self._layouts: Layouts | None = None
        self._held: tuple[Connection, _Fence, Layouts] | None = None

    async def run(self, after_seq: int, after_time: datetime | None) -> None:
        """Reads everything; its error is the export's."""
        try:
            await self._run(after_seq, after_time)
        except asyncio.CancelledError:
            # Nobody takes parts any more.
            raise
        except BaseException:
            await self._parts.put(None)
            raise
        await self._parts.put(None)

    async def _run(self, after_seq: int, after_time: datetime | None) -> None:
        if not self._is_final:
            await self._send_all(after_seq, after_time)
            return
        # A closed shard does not change any more, and writers wait: one snapshot for all of it.
        async with self._slice() as self._held:
            await self._send_all(after_seq, after_time)

    async def _send_all(self, after_seq: int, after_time: datetime | None) -> None:
        async with self._slice() as (_, fence, layouts):
            self._layouts = layouts
        await self._put(Head(layouts.all, fence.last_seq))
        target, left = fence.last_seq, None
        for _ in range(MAX_ROUNDS):
            await self._send_sequences(after_seq, target)
            after_time, fence = await self._send_times(after_time)
            after_seq, remaining = target, fence.last_seq - target
            if remaining <= (0 if self._is_final else NEARLY) or (left is not None and remaining >= left):
                break
            target, left = fence.last_seq, remaining
        if self._is_final and layouts.whole:
            await self._send_whole()
        await self._put(End(after_seq, fence.last_time))

    # ---- the kinds of slices ----------------------------------------------------------------------------------------

    async def _send_sequences(self, after: int, target: int) -> None:
        """Sends the rows of a range of sequences."""
        while after < target:
            async with self._slice() as (connection, _, layouts):
                through = await self._find_end(connection, layouts, after, target)
                condition = f"{self._shard} AND {in_sequence(after, through)}"
                tables = [layout for layout in layouts.by_seq if await _has_rows(connection, layout, condition)]
                size = rows = 0
                for layout in tables:
                    ends = through if layout is tables[-1] else None
                    await self._put(SliceStart(layout.table, through))
                    sent = await self._send_rows(connection, layout, condition, through_seq=ends)
                    size, rows = size + sent.bytes, rows + sent.rows
            self._adapt(size, rows)
            after = through

    async def _send_times(self, after: datetime | None) -> tuple[datetime | None, _Fence]:
        """Sends what has come into the tables that travel by time; returns up to when, and the fence as last seen.

        A range begins where the one before has ended, both ends included: a time may be that of several requests, of
        which one has come later.
        """
        while True:
            async with self._slice() as (connection, seen, layouts):
                last = seen.last_time
                if last is None or not layouts.by_time:
                    return after, seen
                through = await self._find_time(connection, layouts, after) or last
                condition = f"{self._shard} AND {in_time(after, through)}"
                for layout in layouts.by_time:
                    await self._put(SliceStart(layout.table))
                    ends = through if layout is layouts.by_time[-1] else None
                    await self._send_rows(connection, layout, condition, through_time=ends)
            after = through
            if through >= last:
                return after, seen

    async def _send_whole(self) -> None:
        async with self._slice() as (connection, _, layouts):
            for layout in layouts.whole:
                await self._put(SliceStart(layout.table))
                await self._send_rows(connection, layout, self._shard)

    # ---- a slice ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _slice(self) -> AsyncGenerator[tuple[Connection, _Fence, Layouts]]:
        """A snapshot in which the fence lets the export pass, and the tables are as they were at its beginning."""
        if self._held is not None:
            yield self._held
            return
        async with self._connections.take(is_urgent=self._is_final) as connection, transaction(connection, SNAPSHOT):
            fence = await self._look_at_fence(connection)
            layouts = await read_layouts(connection, self._shard_tables)
            if self._layouts not in (None, layouts):
                raise DatabaseUnavailable("a table was changed while the shard was copied")
            yield connection, fence, layouts

    async def _look_at_fence(self, connection: Connection) -> _Fence:
        step = self._step
        record = await fetch_any(connection, _FENCE, step.region_code, step.shard)
        modes = (FenceMode.CLOSED,) if self._is_final else (FenceMode.SERVING, FenceMode.DRAINING, FenceMode.CLOSED)
        if (
            record is None
            or record["epoch"] != step.epoch
            or record["attempt"] != step.attempt
            or record["mode"] not in modes
        ):
            raise refusal(step, record)
        last_seq: int = record["last_seq"]
        return _Fence(last_seq, record["last_time"] if last_seq else None)

    async def _find_end(self, connection: Connection, layouts: Layouts, after: int, target: int) -> int:
        """The last sequence of a slice: read off the indexes, merged in their order."""
        if not layouts.by_seq or target - after <= self._slice_rows:
            return target
        condition = f"{self._shard} AND {in_sequence(after, target)}"
        return await self._nth(connection, layouts.by_seq, "seq", condition) or target

    async def _find_time(self, connection: Connection, layouts: Layouts, after: datetime | None) -> datetime | None:
        """The last time of a slice, when not all that is left fits in; above `after`, so that each gets on."""
        above = f" AND update_time > '{after.isoformat()}'" if after is not None else ""
        return await self._nth(connection, layouts.by_time, "update_time", f"{self._shard} AND {BY_TIME}{above}")

    async def _nth(self, connection: Connection, tables: Sequence[TableLayout], column: str, condition: str) -> Any:  # noqa: ANN401 (as the column is)
        """Where a slice that begins with the first such row is full, or None."""
        merged = " UNION ALL ".join(
            f"SELECT {column} FROM {quote(layout.table)} WHERE {condition}"  # noqa: S608 (quoted)
            for layout in tables
        )
        statement = f"SELECT {column} FROM ({merged}) AS m ORDER BY {column} OFFSET {self._slice_rows - 1} LIMIT 1"  # noqa: S608 (ours)
        record = await fetch_any(connection, statement)
        return None if record is None else record[0]

    async def _send_rows(
        self,
        connection: Connection,
        layout: TableLayout,
        condition: str,
        *,
        through_seq: int | None = None,
        through_time: datetime | None = None,
    ) -> _Sent:
        """Sends rows and their digest."""
        size, joined = 0, bytearray()
        with Watch(connection) as watch:

            async def take(piece: bytes) -> None:
                nonlocal size
                watch.pause()
                size += len(piece)
                joined.extend(piece)
                if len(joined) >= CHUNK_BYTES:
                    await self._put(bytes(joined))
                    joined.clear()
                watch.resume()

            query = f"SELECT {column_list(layout)} FROM {quote(layout.table)} WHERE {condition}"  # noqa: S608 (quoted)
            await connection.copy_from_query(query, output=take, format="binary")
        if joined:
            await self._put(bytes(joined))
        digest = await digest_where(connection, layout, condition)
        await self._put(SliceEnd(digest, through_seq, through_time))
        return _Sent(digest.rows, size)

    def _adapt(self, size: int, rows: int) -> None:
        """Chooses the length of the next slice by the size of the last one's rows."""
        if rows:
            self._slice_rows = max(1, min(SLICE_ROWS, rows * SLICE_BYTES // size))

    async def _put(self, part: ExportPart) -> None:
        try:
            async with asyncio.timeout(CONSUMER_SECONDS):
                await self._parts.put(part)
        except TimeoutError:
            raise DatabaseUnavailable("nobody takes the rows of the export") from None


async def _has_rows(connection: Connection, layout: TableLayout, condition: str) -> bool:
    statement = f"SELECT EXISTS (SELECT FROM {quote(layout.table)} WHERE {condition})"  # noqa: S608 (quoted)
    return (await fetch_one(connection, statement))[0]
