"""What the engine tells of its writes."""

from __future__ import annotations

import asyncio

import pytest

from gateway.limits import EngineSettings
from gateway.statements import Statements
from policy.errors import DatabaseUnavailable
from rowstore.model import ReadKey, RowWrite
from tests.support.engine_side import CUSTOMERS, NO_TRACES, TABLE
from tests.support.memory_rows import MemoryRows


def where(key: str) -> dict[str, object]:
    route = TABLE.resolve("DE", key)
    return {"region_code": "DE", "shard": route.shard, "epoch": route.epoch, "key": key}


def row_write(key: str) -> RowWrite:
    return RowWrite(**where(key), values={"name": "n"})


@pytest.fixture
async def told():
    """Statements on rows in memory, and what they have told."""
    rows, calls = MemoryRows(), []
    rows.open_all(TABLE, TABLE.resolve("DE", "k").idc)
    statements = Statements(rows, NO_TRACES, EngineSettings(), lambda: calls.append(len(rows.statements)))
    yield statements, rows, calls
    await statements.drain()


def deadline() -> float:
    return asyncio.get_running_loop().time() + 10


async def test_a_write_statement_is_told_once_when_the_database_has_answered(told):
    statements, rows, calls = told
    writes = statements.writes(CUSTOMERS)
    await asyncio.gather(*(writes.submit([row_write(f"k-{n}")], deadline()) for n in range(10)))
    assert len(calls) == len(rows.statements) < 10


async def test_a_read_is_told_to_nobody(told):
    statements, _, calls = told
    await statements.reads(CUSTOMERS).submit([ReadKey(**where("k"))], deadline())
    assert calls == []


async def test_a_write_that_failed_is_told_to_nobody(told):
    statements, rows, calls = told
    rows.failure = DatabaseUnavailable("gone")
    outcome = await statements.writes(CUSTOMERS).submit([row_write("k")], deadline())
    assert isinstance(outcome, DatabaseUnavailable)
    assert calls == []
