"""Law L4 in the engine: histories stay linearizable per key while shards move between IDCs under load."""

from __future__ import annotations

import asyncio
import random

import pytest

from gateway.operations import Action, RowOperation
from gateway.values import encode_row
from policy.errors import RowNotFound, Unavailable
from policy.model import Phase
from policy.records import ShardRecord
from policy.sharding import shard_of
from rowstore.model import FenceMode
from tests.support import routing
from tests.support.linearizability import LOST, Event, Recorder, violations
from tests.support.memory_rows import MemoryRows
from tests.support.peer_gateway import PeerGateway, running

LAW = routing.policy()
TABLE = routing.table(LAW)
CUSTOMERS = LAW.datasets["customers"]
SHARDS = LAW.regions["DE"].shards
KEYS = [f"k{number}" for number in range(6)]


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class Mover:
    """Moves shards of DE to and fro between fra and ams, telling the gateways in any order and at any time."""

    def __init__(self, rows: dict[str, MemoryRows], gateways: list[PeerGateway], dice: random.Random) -> None:
        self.rows = rows
        self.gateways = gateways
        self.dice = dice
        self.owners = dict.fromkeys(range(SHARDS), "fra")
        self.epochs = dict.fromkeys(range(SHARDS), 1)
        self.revision = TABLE.store_revision

    async def move(self) -> None:
        shard = self.dice.randrange(SHARDS)
        source = self.owners[shard]
        target = "ams" if source == "fra" else "fra"
        epoch = self.epochs[shard]
        self.rows[source].set_fence("DE", shard, epoch, FenceMode.DRAINING)
        await turns(self.dice.randrange(100))
        if self.dice.random() < 0.3:  # called off
            self.rows[source].set_fence("DE", shard, epoch, FenceMode.SERVING)
            return
        self.rows[source].set_fence("DE", shard, epoch, FenceMode.CLOSED)
        self.rows[target].set_fence("DE", shard, epoch, FenceMode.IMPORTING)
        self.rows[source].hand_over(self.rows[target], "DE", shard, [k for k in KEYS if shard_of(k, SHARDS) == shard])
        self.owners[shard], self.epochs[shard] = target, epoch + 1
        await self.tell(shard, Phase.OPENING)
        self.rows[target].set_fence("DE", shard, epoch + 1, FenceMode.SERVING)
        await self.tell(shard, Phase.SERVING)

    async def tell(self, shard: int, phase: Phase) -> None:
        self.revision += 1
        record = ShardRecord(self.owners[shard], self.epochs[shard], phase, 1)
        for gateway in self.dice.sample(self.gateways, len(self.gateways)):
            await turns(self.dice.randrange(40))
            gateway.view.patch(store_revision=self.revision, shards=[("DE", shard, record)])


async def client(name: str, gateways: list[PeerGateway], history: Recorder, dice: random.Random) -> None:
    """Reads and writes single rows through any gateway, as an application does."""
    loop = asyncio.get_running_loop()
    for number in range(50):
        key, gateway, start = dice.choice(KEYS), dice.choice(gateways), loop.time()
        if dice.random() < 0.5:
            value = f"{name}-{number}"
            request_id = value if dice.random() < 0.5 else ""
            write = RowOperation(Action.PUT, CUSTOMERS, "DE", key, values={"name": value}, request_id=request_id)
            (outcome,) = await gateway.do(write)
            if outcome.receipt is None:
                assert isinstance(outcome.error, Unavailable), outcome.error
            history.add(key, Event(True, value, start, loop.time() if outcome.receipt else LOST, name))
        else:
            (outcome,) = await gateway.do(RowOperation(Action.GET, CUSTOMERS, "DE", key))
            if outcome.row is not None:
                seen = encode_row(outcome.row, CUSTOMERS).columns["name"].string_value
                history.add(key, Event(False, seen, start, loop.time(), name))
            elif isinstance(outcome.error, RowNotFound):
                history.add(key, Event(False, None, start, loop.time(), name))
            else:
                assert isinstance(outcome.error, Unavailable), outcome.error


class Unfenced(MemoryRows):
    """A database that serves whoever asks."""

    def _miss(self, *_):
        return None


async def run(seed: int, rows: dict[str, MemoryRows]) -> list[str]:
    """Clients and moves together; the keys whose history is not linearizable."""
    dice = random.Random(seed)
    for database in rows.values():
        for shard in range(SHARDS):
            database.set_fence("DE", shard, 0, FenceMode.CLOSED)
    rows["fra"].open_all(TABLE, "fra")
    async with running(TABLE, rows, "fra-a", "fra-b", "ams-a") as gateways:
        history, mover = Recorder(), Mover(rows, list(gateways), dice)
        clients = [client(f"c{n}", list(gateways), history, random.Random(f"{seed}-{n}")) for n in range(8)]
        working = asyncio.gather(*clients)
        moves = 0
        while not working.done():
            await mover.move()
            await turns(30)
            moves += 1
        await working
    assert len(history) > 300, "most operations came through"
    assert moves >= 3
    return violations(history.histories)


@pytest.mark.parametrize("seed", range(5))
async def test_histories_are_linearizable_while_shards_move(seed):
    """Law L4."""
    assert not await run(seed, {"fra": MemoryRows(), "ams": MemoryRows()})


@pytest.mark.parametrize("database", [MemoryRows, Unfenced])
async def test_a_gateway_that_has_not_heard_of_a_move_loses_no_write_because_of_the_fence(database):
    """Laws L3 and L4; and without the fence the history checker finds the lost write."""
    rows = {idc: database() for idc in ("fra", "ams")}
    rows["fra"].open_all(TABLE, "fra")
    async with running(TABLE, rows, "fra-a", "fra-b", "ams-a") as (told, behind, ams):
        mover = Mover(rows, [told, ams], random.Random(0))
        history = Recorder()
        while "ams" not in mover.owners.values():
            await mover.move()
        (shard,) = (shard for shard, owner in mover.owners.items() if owner == "ams")
        key = next(key for key in KEYS if shard_of(key, SHARDS) == shard)
        loop = asyncio.get_running_loop()
        writing = asyncio.create_task(
            behind.do(RowOperation(Action.PUT, CUSTOMERS, "DE", key, values={"name": "late"}))
        )
        if database is MemoryRows:
            await behind.view.waiting.wait()
            mover.gateways.append(behind)
            await mover.tell(shard, Phase.SERVING)
        assert (await writing)[0].receipt
        history.add(key, Event(True, "late", 0.0, loop.time()))
        (found,) = await ams.do(RowOperation(Action.GET, CUSTOMERS, "DE", key))
        seen = found.row.values["name"] if found.row else None
        history.add(key, Event(False, seen, loop.time(), loop.time() + 1))
    assert bool(violations(history.histories)) == (database is Unfenced)
