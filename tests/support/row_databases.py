"""One IDC's database as the row store's tests see it: several gateways on it, and a hand on its locks."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.database import Database
from rowstore.model import ReadKey, RowWrite, ShardEpoch
from rowstore.moving import Mover, MoveStep
from rowstore.schema import ensure_datasets, migrate
from rowstore.store import RowStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping

    from rowstore.moving import ExportPart, ImportProgress

CUSTOMERS = Dataset(
    "customers",
    KeyType.STRING,
    {"name": Column("name", ColumnType.STRING, "personal"), "spend": Column("spend", ColumnType.INT64)},
)
ORDERS = Dataset("orders", KeyType.INT64, {"order": Column("order", ColumnType.STRING)})
PATIENCE = 10.0
"""Seconds until a condition that must come has failed to come."""


def put(
    key: str | int,
    values: Mapping[str, object] | None = None,
    *,
    shard: int = 0,
    epoch: int = 1,
    region: str = "DE",
    if_version: int | None = None,
    request_id: str = "",
) -> RowWrite:
    """A put; no values put an empty row."""
    return RowWrite(region, shard, epoch, key, values or {}, if_version, request_id)


def delete(
    key: str | int, *, shard: int = 0, epoch: int = 1, if_version: int | None = None, request_id: str = ""
) -> RowWrite:
    """A delete."""
    return RowWrite("DE", shard, epoch, key, None, if_version, request_id)


def get(key: str | int, *, shard: int = 0, epoch: int = 1, region: str = "DE") -> ReadKey:
    """A key to read."""
    return ReadKey(region, shard, epoch, key)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Waits until the condition holds, and fails when it never does."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not await condition():  # noqa: ASYNC110 (the database rings no bell)
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


@dataclass
class RowDatabase:
    """A database with tables and open fences, and the gateways on it."""

    url: str
    database: Database
    store: RowStore
    hand: asyncpg.Connection
    """A connection of the test's own."""
    _stack: AsyncExitStack

    async def another_gateway(self, **settings: object) -> RowStore:
        """Another process's store on the same database."""
        database = await self._stack.enter_async_context(Database.open(self.url, **settings))
        return RowStore(database)

    async def set_fence(self, shard: int = 0, *, mode: str = "serving", epoch: int = 1) -> None:
        """Puts a fence into a mode and epoch."""
        await self.hand.execute(
            "UPDATE shard_fences SET mode = $1, epoch = $2 WHERE region_code = 'DE' AND shard = $3", mode, epoch, shard
        )

    async def waiting(self) -> int:
        """How many statements wait for a lock."""
        return await self.hand.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

    @asynccontextmanager
    async def holding_fence(self, shard: int = 0) -> AsyncIterator[asyncpg.Connection]:
        """A transaction that holds a fence; the body may change it, and its end commits."""
        connection = await asyncpg.connect(self.url)
        try:
            async with connection.transaction():
                await connection.execute(
                    "SELECT FROM shard_fences WHERE region_code = 'DE' AND shard = $1 FOR UPDATE", shard
                )
                yield connection
        finally:
            await connection.close()

    async def fence(self, shard: int = 0) -> tuple[str, int, int] | None:
        """A fence's mode, epoch and attempt."""
        record = await self.hand.fetchrow(
            "SELECT mode, epoch, attempt FROM shard_fences WHERE region_code = 'DE' AND shard = $1", shard
        )
        return None if record is None else tuple(record)

    async def contents(self, shard: int = 0) -> dict[str, set[str]]:
        """Every row of a shard that lies here, as json without nulls, whatever the fence says and a column's place."""
        found: dict[str, set[str]] = {}
        for table in ("rows_customers", "rows_orders", "write_requests"):
            records = await self.hand.fetch(
                f"SELECT jsonb_strip_nulls(to_jsonb(t))::text FROM {table} AS t WHERE shard = $1", shard
            )
            found[table] = {record[0] for record in records}
        return found

    async def until_waiting(self, number: int) -> None:
        """Waits until that many statements queue for a lock."""

        async def is_so() -> bool:
            return await self.waiting() >= number

        await until(is_so, f"{number} statements waiting for a lock")


async def prepare(url: str, *, shards: int = 4) -> None:
    """Makes tables for two datasets, and opens the first shards of DE."""
    await migrate(url)
    async with Database.open(url) as database:
        await ensure_datasets(database, [CUSTOMERS, ORDERS])
        await RowStore(database).fences.open([ShardEpoch("DE", shard, 1) for shard in range(shards)])


@asynccontextmanager
async def row_database(url: str) -> AsyncIterator[RowDatabase]:
    """Opens a database that has been prepared."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(url))
        store = RowStore(database)
        hand = await asyncpg.connect(url)
        stack.push_async_callback(hand.close)
        yield RowDatabase(url, database, store, hand, stack)


STEP = MoveStep("DE", 0, 1, 1)
"""The first attempt to move shard 0 of DE."""


@dataclass
class MovePair:
    """Two IDCs, and what moves shard 0 from one to the other."""

    source: RowDatabase
    target: RowDatabase
    sender: Mover
    receiver: Mover

    def parts(self, step: MoveStep, progress: ImportProgress, *, is_final: bool = False) -> AsyncGenerator[ExportPart]:
        """The export that goes on where the target is."""
        return self.sender.export(
            step, after_seq=progress.copied_seq, after_time=progress.copied_time, is_final=is_final
        )

    async def copy(self, step: MoveStep = STEP, *, closed_at_seq: int | None = None) -> ImportProgress:
        """One import, from where it was; returns the last progress."""
        progress = await self.receiver.begin_import(step, is_final=closed_at_seq is not None)
        parts = self.parts(step, progress, is_final=closed_at_seq is not None)
        told = self.receiver.import_parts(step, parts, begun=progress, closed_at_seq=closed_at_seq)
        async with aclosing(parts), aclosing(told):
            async for progress in told:  # noqa: B007 (the last one is wanted)
                pass
        return progress

    async def close_and_copy(self, step: MoveStep = STEP) -> ImportProgress:
        """The last round."""
        await self.sender.drain(step)
        fence = await self.sender.close(step)
        return await self.copy(step, closed_at_seq=fence.last_seq)

    async def move(self, step: MoveStep = STEP) -> ImportProgress:
        """Everything up to the opening."""
        await self.sender.begin_export(step)
        await self.copy(step)
        progress = await self.close_and_copy(step)
        await self.receiver.open(step)
        return progress


async def prepare_target(url: str) -> None:
    """Makes the same tables as `prepare`, with the columns in another order, and no fences."""
    await migrate(url)
    reordered = Dataset("customers", KeyType.STRING, {"spend": CUSTOMERS.columns["spend"]})
    async with Database.open(url) as database:
        await ensure_datasets(database, [reordered])
        await ensure_datasets(database, [CUSTOMERS, ORDERS])


@asynccontextmanager
async def move_pair(source: RowDatabase, target: RowDatabase) -> AsyncIterator[MovePair]:
    """Movers on two databases."""
    async with Mover(source.database) as sender, Mover(target.database) as receiver:
        yield MovePair(source, target, sender, receiver)


async def fill(pair: MovePair, rows: int = 300, prefix: str = "k", *, request_id: str = "") -> None:
    """Writes rows into the shard that is to move."""
    for start in range(0, rows, 1000):
        writes = [
            put(f"{prefix}{i}", {"name": f"n{i}", "spend": i}, request_id=request_id)
            for i in range(start, min(rows, start + 1000))
        ]
        await pair.source.store.write(CUSTOMERS, writes)


async def assert_equal(pair: MovePair) -> None:
    """Both databases hold the same of the shard."""
    assert await pair.source.contents() == await pair.target.contents()
