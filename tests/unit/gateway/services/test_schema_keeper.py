"""The schema keeper goes on until the database has what the policy says, and reports what is there."""

from __future__ import annotations

import asyncio

import pytest

from gateway import schema_keeper
from gateway.schema_keeper import SchemaKeeper
from policy.errors import DatabaseUnavailable
from tests.support.routing import policy, table


class View:
    """A law that changes when the test says so."""

    def __init__(self) -> None:
        self.table = None
        self._changed = asyncio.Event()

    def show(self, newer) -> None:
        self.table = newer
        self._changed.set()

    async def subscribe(self):
        while True:
            self._changed.clear()
            yield self.table
            await self._changed.wait()


class Database:
    """Tables as a set of names; it can be down."""

    def __init__(self) -> None:
        self.is_down = False
        self.failed = asyncio.Event()
        self.calls: list[str] = []
        self.reported: list[int] = []
        self.done = asyncio.Event()

    async def migrate(self) -> None:
        self._answer("migrate")

    async def ensure(self, datasets) -> None:
        self._answer(",".join(sorted(dataset.name for dataset in datasets)))

    def report(self, revision: int) -> None:
        self.reported.append(revision)
        self.done.set()

    def _answer(self, call: str) -> None:
        if self.is_down:
            self.failed.set()
            raise DatabaseUnavailable("down")
        self.calls.append(call)


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema_keeper, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(schema_keeper, "LONGEST_PAUSE", 0.001)
    view, database = View(), Database()
    keeper = SchemaKeeper(view, migrate=database.migrate, ensure=database.ensure, report=database.report)
    task = asyncio.create_task(keeper.run())
    yield keeper, view, database
    task.cancel()
    await asyncio.wait({task})


async def until(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 5)


async def test_a_revision_is_reported_when_its_datasets_are_there(running):
    keeper, view, database = running
    view.show(table(policy(revision=4)))
    await until(database.done)
    assert database.reported == [4]
    assert database.calls[0] == "migrate"
    assert (keeper.revision, keeper.problem) == (4, "")


async def test_a_database_that_is_down_is_tried_again_and_nothing_is_reported_meanwhile(running):
    keeper, view, database = running
    database.is_down = True
    view.show(table(policy(revision=4)))
    await until(database.failed)
    assert database.reported == []
    assert keeper.problem == "DATABASE_UNAVAILABLE"
    view.show(table(policy(revision=5)))
    database.is_down = False
    await until(database.done)
    assert database.reported == [5], "by the newest table, not by the one that the first turn failed with"


async def test_the_same_policy_is_not_applied_twice(running):
    _, view, database = running
    known = table(policy(revision=4))
    view.show(known)
    await until(database.done)
    database.done.clear()
    view.show(known.patch(store_revision=99))
    view.show(table(policy(revision=5)))
    await until(database.done)
    assert database.reported == [4, 5]
