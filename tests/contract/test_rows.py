"""What the engine relies on in a store of rows: one suite over PostgreSQL and over the rows in memory of our tests."""

from __future__ import annotations

import asyncio

import pytest

from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.database import Database
from rowstore.model import (
    FenceMiss,
    FenceMode,
    Missing,
    ReadKey,
    RowWrite,
    ShardEpoch,
    StoredRow,
    VersionMismatch,
    Written,
)
from rowstore.schema import ensure_datasets, migrate
from rowstore.store import RowStore
from rowstore.tables import dataset_table
from tests.support.memory_rows import MemoryRows
from tests.support.postgres import create_database, postgres_server  # noqa: F401

CUSTOMERS = Dataset(
    "customers",
    KeyType.STRING,
    {"name": Column("name", ColumnType.STRING), "spend": Column("spend", ColumnType.INT64)},
)


class InMemory:
    """Rows in memory."""

    def __init__(self) -> None:
        self.rows = MemoryRows()

    async def set_fence(self, shard: int, epoch: int, mode: FenceMode = FenceMode.SERVING) -> None:
        self.rows.set_fence("DE", shard, epoch, mode)


class InPostgres:
    """The row store."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rows = RowStore(database)

    async def set_fence(self, shard: int, epoch: int, mode: FenceMode = FenceMode.SERVING) -> None:
        await self.rows.fences.open([ShardEpoch("DE", shard, epoch)])
        await self.database.fetch(
            "UPDATE shard_fences SET epoch = $2, mode = $3 WHERE shard = $1", shard, epoch, mode.value
        )


@pytest.fixture(scope="module")
def prepared_url(postgres_server) -> str:  # noqa: F811
    """A database with everything but rows."""

    async def prepare() -> str:
        url = await create_database(postgres_server)
        await migrate(url)
        async with Database.open(url) as database:
            await ensure_datasets(database, [CUSTOMERS])
        return url

    return asyncio.run(prepare())


@pytest.fixture(params=["memory", "postgres"])
async def store(request, prepared_url):
    if request.param == "memory":
        made = InMemory()
        await made.set_fence(0, 1)
        yield made
        return
    async with Database.open(prepared_url, size=4) as database:
        await database.fetch(f"TRUNCATE shard_fences, write_requests, {dataset_table(CUSTOMERS).name}")
        made = InPostgres(database)
        await made.set_fence(0, 1)
        yield made


def key(name: str, shard: int = 0, epoch: int = 1) -> ReadKey:
    return ReadKey("DE", shard, epoch, name)


def put(
    name: str, value: str = "n", *, shard: int = 0, epoch: int = 1, if_version=None, request_id: str = ""
) -> RowWrite:
    return RowWrite("DE", shard, epoch, name, {"name": value}, if_version, request_id)


def drop(name: str, if_version=None, request_id: str = "") -> RowWrite:
    return RowWrite("DE", 0, 1, name, None, if_version, request_id)


async def write(store, *writes: RowWrite):
    return await store.rows.write(CUSTOMERS, writes)


async def read(store, *keys: ReadKey):
    return await store.rows.read(CUSTOMERS, keys)


async def test_outcomes_come_in_the_order_of_the_call_whatever_the_order_of_the_keys(store):
    written = await write(store, put("b", "2"), put("a", "1"), put("c", "3"))
    assert all(isinstance(outcome, Written) and not outcome.is_replay for outcome in written)
    found = await read(store, key("c"), key("x"), key("a"), key("b"), key("c"))
    assert [row.values["name"] if isinstance(row, StoredRow) else None for row in found] == ["3", None, "1", "2", "3"]
    assert isinstance(found[1], Missing)
    assert [found[2].version, found[3].version] == [written[1].version, written[0].version]
    assert found[3].values == {"name": "2", "spend": None}
    assert found[3].update_time == written[0].update_time


async def test_versions_of_a_shard_rise(store):
    versions = [(await write(store, put("k")))[0].version for _ in range(3)]
    assert versions == sorted(set(versions))


async def test_a_shard_is_read_and_written_at_its_epoch_only(store):
    await write(store, put("k"))
    await store.set_fence(0, 2)
    assert await write(store, put("k", epoch=1)) == [FenceMiss(FenceMode.SERVING, 2)]
    assert await read(store, key("k", epoch=1)) == [FenceMiss(FenceMode.SERVING, 2)]
    assert isinstance((await read(store, key("k", epoch=2)))[0], StoredRow)
    assert isinstance((await write(store, put("k", epoch=2)))[0], Written)


@pytest.mark.parametrize("mode", FenceMode)
async def test_only_a_serving_shard_is_written_and_a_draining_one_is_still_read(store, mode):
    await write(store, put("k"))
    await store.set_fence(0, 1, mode)
    (written,), (found,) = await write(store, put("k")), await read(store, key("k"))
    assert isinstance(written, Written if mode is FenceMode.SERVING else FenceMiss)
    assert isinstance(found, StoredRow if mode in {FenceMode.SERVING, FenceMode.DRAINING} else FenceMiss)


async def test_a_shard_without_a_fence_is_not_here_and_leaves_the_others_alone(store):
    assert await write(store, put("a"), put("z", shard=3)) == [_ANY_WRITTEN, FenceMiss(None, 0)]
    assert (await read(store, key("z", shard=3)))[0] == FenceMiss(None, 0)


class _AnyWritten:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Written)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


_ANY_WRITTEN = _AnyWritten()


async def test_conditions_hold_or_say_the_version(store):
    (first,) = await write(store, put("k", if_version=0))
    assert isinstance(first, Written)
    assert await write(store, put("k", if_version=0)) == [VersionMismatch(first.version)]
    assert await write(store, put("k", if_version=first.version + 7)) == [VersionMismatch(first.version)]
    (second,) = await write(store, put("k", if_version=first.version))
    assert second.version > first.version
    assert await write(store, drop("no", if_version=3)) == [VersionMismatch(0)]


async def test_a_deleted_row_is_gone_and_may_be_made_again(store):
    await write(store, put("k"))
    (deleted,) = await write(store, drop("k"))
    assert isinstance(deleted, Written)
    assert await read(store, key("k")) == [Missing()]
    assert isinstance((await write(store, drop("never-there")))[0], Written)
    assert isinstance((await write(store, put("k", if_version=0)))[0], Written)


async def test_a_request_writes_once_even_when_others_have_written_since(store):
    (first,) = await write(store, put("k", "a", request_id="r1"))
    await write(store, put("k", "b"))
    (again,) = await write(store, put("k", "a", request_id="r1"))
    assert (again.version, again.update_time, again.is_replay) == (first.version, first.update_time, True)
    assert (await read(store, key("k")))[0].values["name"] == "b"


async def test_a_batch_of_one_request_is_remembered_row_by_row(store):
    batch = [put(name, request_id="r1") for name in ("c", "a", "b")]
    first, again = await write(store, *batch), await write(store, *batch)
    assert [outcome.version for outcome in again] == [outcome.version for outcome in first]


async def test_a_conditional_request_that_succeeded_is_a_replay_and_no_conflict(store):
    (first,) = await write(store, put("k", if_version=0, request_id="r1"))
    (again,) = await write(store, put("k", if_version=0, request_id="r1"))
    assert (again.version, again.is_replay) == (first.version, True)


async def test_attempts_at_once_write_once(store):
    attempts = await asyncio.gather(*(write(store, put("k", request_id="r1")) for _ in range(4)))
    assert len({outcome.version for (outcome,) in attempts}) == 1
