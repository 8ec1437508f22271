"""The engine on PostgreSQL: two gateways of one IDC share its database."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest

from gateway.engine import Engine
from gateway.limits import EngineSettings, PeerSettings
from gateway.operations import Action, CallContext, RowOperation
from gateway.peers import Peers
from policy.errors import DatabaseUnavailable, RowNotFound, ShardUnavailable
from rowstore.database import Database
from rowstore.model import ShardEpoch
from rowstore.schema import ensure_datasets, migrate
from rowstore.store import RowStore
from runtime.telemetry.tracing import Tracing
from tests.support import routing
from tests.support.linearizability import Event, Recorder, violations
from tests.support.postgres import create_database, postgres_server  # noqa: F401

LAW = routing.policy()
TABLE = routing.table(LAW)
CUSTOMERS = LAW.datasets["customers"]


def get(key: str) -> RowOperation:
    return RowOperation(Action.GET, CUSTOMERS, "DE", key)


def put(key: str, name: str = "n", **fields) -> RowOperation:
    return RowOperation(Action.PUT, CUSTOMERS, "DE", key, values={"name": name}, **fields)


class Pair:
    """Two engines over one database."""

    def __init__(self, databases: list[Database]) -> None:
        self.database = databases[0]
        self.view = routing.HandView(TABLE)
        peers = Peers("fra", self.view, PeerSettings())
        limits = EngineSettings(hold_timeout=timedelta(seconds=0.2))
        tracing = Tracing("gateway", "fra", 0.0, None)
        self.engines = [
            Engine("fra", self.view, RowStore(database), peers, tracing, settings=limits) for database in databases
        ]

    async def do(self, *operations: RowOperation, which: int = 0):
        deadline = asyncio.get_running_loop().time() + 20
        return await self.engines[which].execute(operations, CallContext(deadline))


@pytest.fixture
async def pair(postgres_server):  # noqa: F811
    url = await create_database(postgres_server)
    await migrate(url)
    async with Database.open(url, size=4) as one, Database.open(url, size=4) as two:
        await ensure_datasets(one, LAW.datasets.values())
        shards = [ShardEpoch(it.region_code, it.shard, it.epoch) for it in TABLE.all_routes() if it.idc == "fra"]
        await RowStore(one).fences.open(shards)
        yield Pair([one, two])


async def test_histories_of_two_gateways_are_linearizable(pair):
    """Law L4: coalesced statements of both, on few keys, with retries of requests that have been answered."""
    history, loop = Recorder(), asyncio.get_running_loop()

    async def client(name: str) -> None:
        dice = random.Random(name)
        for number in range(30):
            key, which, start = f"k{dice.randrange(5)}", dice.randrange(2), loop.time()
            if dice.random() < 0.5:
                value = f"{name}-{number}"
                write = put(key, value, request_id=value)
                first, again = await asyncio.gather(pair.do(write, which=which), pair.do(write, which=1 - which))
                assert first[0].receipt.version == again[0].receipt.version
                history.add(key, Event(True, value, start, loop.time(), name))
            else:
                (found,) = await pair.do(get(key), which=which)
                assert found.row or isinstance(found.error, RowNotFound)
                seen = found.row.values["name"] if found.row else None
                history.add(key, Event(False, seen, start, loop.time(), name))

    await asyncio.gather(*(client(f"c{number}") for number in range(12)))
    assert len(history) == 360
    assert not violations(history.histories)


async def test_versions_and_conditions_meet_across_gateways(pair):
    """Law L4: of many conditional writes at one version exactly one succeeds."""
    (first,) = await pair.do(put("k"))
    writes = [pair.do(put("k", f"n{n}", if_version=first.receipt.version), which=n % 2) for n in range(10)]
    outcomes = [outcome for (outcome,) in await asyncio.gather(*writes)]
    assert sum(outcome.receipt is not None for outcome in outcomes) == 1
    made = await asyncio.gather(*(pair.do(put("new", if_version=0), which=n % 2) for n in range(10)))
    assert sum(outcome.receipt is not None for (outcome,) in made) == 1


async def test_a_closed_fence_ends_in_shard_unavailable_and_nothing_is_written(pair):
    """Laws L2 and L8."""
    await pair.database.fetch("UPDATE shard_fences SET mode = 'closed'")
    written, found = await pair.do(put("k"), get("k"))
    assert isinstance(written.error, ShardUnavailable)
    assert isinstance(found.error, ShardUnavailable)
    await pair.database.fetch("UPDATE shard_fences SET mode = 'serving'")
    assert isinstance((await pair.do(get("k")))[0].error, RowNotFound)


async def test_a_value_that_the_database_refuses_fails_alone(pair):
    """What slips past the checks of values must not fail the callers that it shares a statement with."""
    bad = put("bad", "surrogate \ud800")
    others = [pair.do(put(f"k{number}")) for number in range(5)]
    outcomes = await asyncio.gather(*others, pair.do(bad))
    assert all(outcome.receipt for (outcome,) in outcomes[:-1])
    assert outcomes[-1][0].error


async def test_a_dataset_that_is_not_in_the_database_yet_is_unavailable(pair):
    text = routing.POLICY.replace("  counters:", "  newcomers:")
    law = routing.policy(text, 2)
    pair.view.patch(store_revision=11, law=law)
    operation = RowOperation(Action.GET, law.datasets["newcomers"], "DE", 1)
    assert isinstance((await pair.do(operation))[0].error, DatabaseUnavailable)
