"""Laws L3 and L4 in every order of attempts: requests and their retries against the fence and what is remembered.

Each statement of the row store is atomic, so at this grain every order of a few statements is every way in which they
can meet; what two of them do while they run side by side is for the row store's own tests. The statements run on a
real PostgreSQL, each order on a shard of its own. `Register` is what a reader may expect: a row with one value,
requests that happen once, and an owner that lets nothing pass at another epoch.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.database import Database
from rowstore.model import FenceMiss, Missing, ReadKey, RowWrite, ShardEpoch, StoredRow, VersionMismatch, Written
from rowstore.schema import ensure_datasets, migrate
from rowstore.store import RowStore
from tests.support.postgres import database_url, postgres_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["database_url", "postgres_server"]

DATASET = Dataset("customers", KeyType.STRING, {"spend": Column("spend", ColumnType.INT64)})


class Step(NamedTuple):
    """One statement."""

    kind: str
    """put | insert | update | delete | close | reopen"""
    request_id: str = ""
    epoch: int = 1
    value: int = 0


A, B = Step("put", "a", value=1), Step("put", "b", value=2)
INSERT, UPDATE, DELETE = Step("insert", "i", value=3), Step("update", "u", value=4), Step("delete", "d")
CLOSE, REOPEN = Step("close"), Step("reopen")
LATE = A._replace(epoch=2)
"""The retry of a gateway that knows the new epoch."""

STORIES = {
    "puts and their retries": (A, A, B, B),
    "a delete between": (A, DELETE, A, B, DELETE),
    "an insert that is tried again after a delete": (INSERT, INSERT, DELETE, B),
    "an update that is tried again": (A, UPDATE, UPDATE, B),
    "a shard that leaves and comes back": (A, CLOSE, REOPEN, LATE, B),
}


class Register:
    """One row of one shard, as it should behave."""

    def __init__(self) -> None:
        self.value: int | None = None
        self.version = self.last_seq = 0
        self.epoch, self.is_open = 1, True
        self.remembered: dict[str, int] = {}

    def expect(self, step: Step, if_version: int | None) -> type | int:
        """What the step must answer: the class of a refusal, or the version of the write that was done for it."""
        if step.kind == "close":
            self.is_open = False
        elif step.kind == "reopen":
            self.epoch, self.is_open = 2, True
        if step.kind in {"close", "reopen"}:
            return 0
        if not self.is_open or step.epoch != self.epoch:
            return FenceMiss
        if step.request_id in self.remembered:
            return self.remembered[step.request_id]
        if if_version is not None and if_version != (self.version if self.value is not None else 0):
            return VersionMismatch
        self.value = None if step.kind == "delete" else step.value
        return 0


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[RowStore]:
    await migrate(database_url)
    async with Database.open(database_url, size=2) as database:
        await ensure_datasets(database, [DATASET])
        yield RowStore(database)


@pytest.mark.parametrize("story", STORIES)
async def test_laws_l3_and_l4_hold_in_every_order_of_attempts(store: RowStore, story: str) -> None:
    orders = sorted(set(itertools.permutations(STORIES[story])))
    await store.fences.open([ShardEpoch("DE", shard, 1) for shard in range(len(orders))])
    outcomes: set[str] = set()
    for shard, order in enumerate(orders):
        outcomes |= await _play(store, shard, order)
    assert "written" in outcomes
    # In most stories something is tried again; what it was tried for must have been recognised somewhere.
    assert "replayed" in outcomes


async def _play(store: RowStore, shard: int, order: Sequence[Step]) -> set[str]:
    register, key, outcomes = Register(), f"k{shard}", set[str]()
    first_version: int | None = None
    for step in order:
        if_version = {"insert": 0, "update": first_version or 1}.get(step.kind)
        expected = register.expect(step, if_version)
        if step.kind in {"close", "reopen"}:
            await _move(store, shard, step)
            continue
        values = None if step.kind == "delete" else {"spend": step.value}
        write = RowWrite("DE", shard, step.epoch, key, values, if_version, step.request_id)
        (outcome,) = await store.write(DATASET, [write])
        where = (order, step, outcome)
        if isinstance(expected, type):
            assert isinstance(outcome, expected), where
        elif expected:
            assert isinstance(outcome, Written), where
            assert (outcome.version, outcome.is_replay) == (expected, True), where
        else:
            assert isinstance(outcome, Written), where
            assert not outcome.is_replay, where
            assert outcome.version > register.last_seq, (where, "versions only grow")
            register.version = register.last_seq = outcome.version
            register.remembered[step.request_id] = outcome.version
            first_version = first_version or outcome.version
        outcomes.add("replayed" if expected and not isinstance(expected, type) else type(outcome).__name__.lower())
        await _check_read(store, shard, key, register, where)
    return outcomes


async def _check_read(store: RowStore, shard: int, key: str, register: Register, where: Any) -> None:
    for epoch in (1, 2):
        (found,) = await store.read(DATASET, [ReadKey("DE", shard, epoch, key)])
        if not register.is_open or epoch != register.epoch:
            assert isinstance(found, FenceMiss), where
        elif register.value is None:
            assert isinstance(found, Missing), where
        else:
            assert isinstance(found, StoredRow), where
            assert (found.values["spend"], found.version) == (register.value, register.version), where


async def _move(store: RowStore, shard: int, step: Step) -> None:
    """What a move will do with the fence of its shard."""
    mode, epoch = ("closed", 1) if step.kind == "close" else ("serving", 2)
    statement = "UPDATE shard_fences SET mode = $1, epoch = $2 WHERE region_code = 'DE' AND shard = $3"
    await store.fences._database.fetch(statement, mode, epoch, shard)
