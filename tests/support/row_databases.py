"""One IDC's database as the row store's tests see it: several gateways on it, and a hand on its locks."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.database import Database
from rowstore.model import ReadKey, RowWrite, ShardEpoch
from rowstore.schema import ensure_datasets, migrate
from rowstore.store import RowStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

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
