"""What attacks on job runners share: a fleet over a stack whose shards move, clients that write, and the judgement.

The job `ledger` writes each change down twice: in a table of the shard's own, in the batch's transaction (law L5: each
once), and in a file outside of it (each at least once, no gap). Ledgers go on from test to test, and so do offsets:
what is judged at the end of each test is all that was ever written.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

import asyncpg

import regiongate
from policy.errors import RegiongateError
from tests.support.job_runners import LEASE_SECONDS, Entry, JobRunners, doubled
from tests.support.law_stack import until
from tests.support.move_stack import ENDS, PATIENCE, SHARDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping
    from pathlib import Path

    from gateway.client import Client
    from tests.support.job_runners import JobRunner
    from tests.support.move_stack import MoveStack

LAWFUL: Mapping[str, frozenset[str]] = {"fra": frozenset({"DE"}), "ams": frozenset({"DE"}), "sin": frozenset({"SG"})}
"""RegionCodes that each IDC may hold, by the policy that tests find."""
POISONED = 0.01
"""Share of the new rows."""
CREW: Mapping[str, int] = {"fra": 2, "ams": 2, "sin": 1}
"""Runners of each IDC that a test finds."""

POISON = -1
"""What a new row spends that the ledger cannot handle, until there is a cure."""

LEDGER_AND_SINK = '''
"""Writes down every change of a customer: in the transaction of the batch, and in a file. Knows rows that it cannot."""

import os
from datetime import timedelta
from pathlib import Path

import regiongate
from sqlalchemy import text

INSERT = text("INSERT INTO effects_ledger VALUES (:region_code, :shard, :seq, :key, :spend, :idc, :job)")
SINK = os.open(os.environ["TEST_SINK"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
CURE = Path(os.environ["TEST_CURE"])


@regiongate.job(
    dataset="customers", kind="long-running", batch_size=10, with_deleted=True,
    retry=regiongate.Retry(attempts=2, first_pause=timedelta(milliseconds=20), longest_pause=timedelta(seconds=1)),
)
async def ledger(batch):
    # One write for a batch: a process that is killed leaves whole lines.
    os.write(SINK, "".join(f"{batch.idempotency_key(row)}\\n" for row in batch.rows).encode())
    await batch.connection.execute(INSERT, [
        {"region_code": row.region_code, "shard": row.shard, "seq": row.version, "key": row.key,
         "spend": row.get("spend"), "idc": batch.idc, "job": batch.job}
        for row in batch.rows
    ])
    if any(row.get("spend") == -1 for row in batch.rows) and not CURE.exists():
        raise ValueError("a row that nobody can handle")
'''

_PLACES = """
SELECT region_code FROM rows_customers UNION SELECT region_code FROM effects_ledger
UNION SELECT region_code FROM job_offsets UNION SELECT region_code FROM job_set_aside
"""


@dataclass
class Fleet(JobRunners):
    """The runners of a module of tests, over a stack whose shards move."""

    moves: MoveStack = field(kw_only=True)
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def sink(self) -> Path:
        """The file outside of all transactions."""
        return self.folder / "sink.txt"

    @property
    def cure(self) -> Path:
        """While this file is there, no row is poisoned."""
        return self.folder / "cure"

    @property
    def environment(self) -> dict[str, str]:
        """What the module of the ledger asks for."""
        return {"TEST_SINK": str(self.sink), "TEST_CURE": str(self.cure)}

    def of(self, idc: str) -> list[JobRunner]:
        """The runners of an IDC that run, or sleep."""
        return [it for it in self.runners if it.is_running and it.idc == idc]

    async def muster(self) -> None:
        """Completes the crew, awake and ready."""
        for runner in [it for it in self.runners if not it.is_running]:
            self.runners.remove(runner)
        missing = [idc for idc, number in CREW.items() for _ in range(number - len(self.of(idc)))]
        await asyncio.gather(*map(self.enlist, missing))
        await asyncio.gather(*(it.ready() for it in self.runners))

    async def enlist(self, idc: str, *modules: Path, name: str = "", wait: bool = True, **settings: Any) -> JobRunner:
        """One more runner of the ledger."""
        module = self.write_module("ledger_and_sink", LEDGER_AND_SINK)
        # All of an IDC share a name: nothing may rest on names.
        name = name or f"{idc}-crew"
        return await self.start(idc, module, *modules, name=name, wait=wait, environment=self.environment, **settings)

    async def strike(self) -> str:
        """Does something bad to a runner, drawn by lot; returns what."""
        runner = self.dice.choice([it for it in self.runners if it.is_running])
        if self.dice.random() < 0.3:
            await runner.kill()
            self.runners.remove(runner)
            await self.enlist(runner.idc, wait=False)
            return f"kill {runner.name}"
        # Longer than a lease in half of the cases.
        seconds = self.dice.uniform(0.2, 2 * LEASE_SECONDS)
        runner.pause()
        await asyncio.sleep(seconds)
        runner.wake()
        return f"pause {runner.name} for {seconds:.1f} s"

    async def strike_on(self, stop: asyncio.Event, done: list[str]) -> None:
        """Strikes until told to stop."""
        while not stop.is_set():
            done.append(await self.strike())

    async def shuffle(self, number: int, *, with_trouble: bool = False) -> None:
        """Moves some shards, drawn by lot, each to its other end, at once; returns when they are there."""
        records = await self.moves.shard_records()
        for shard in self.dice.sample(range(SHARDS), number):
            await self.moves.move_shard(shard, next(idc for idc in ENDS if idc != records["DE", shard].owner))
        if with_trouble:
            await self.break_something()
        await self.moves.rest()

    async def break_something(self) -> None:
        """Breaks what runners need, drawn by lot, and waits until it is whole again."""
        idc, seconds = self.dice.choice(ENDS), self.dice.uniform(0.5, 3 * LEASE_SECONDS)
        match self.dice.choice(("gateway", "postgres", "asleep", "etcd")):
            case "etcd":
                async with self.moves.asleep("etcd"):
                    await asyncio.sleep(seconds)
            case "asleep":
                async with self.moves.asleep(f"gateway-{idc}"):
                    await asyncio.sleep(seconds)
            case role:
                name = f"{role}-{idc}"
                pid = self.moves.kill(name)
                await self.moves.wait_back(name, pid)

    async def set_aside(self, job: str = "ledger") -> list[Entry]:
        """What every database holds of rows that were set aside, as if it were lines of a ledger."""
        sql = "SELECT region_code, shard, seq, key FROM job_set_aside WHERE job = $1"
        found: list[Entry] = []
        for idc in LAWFUL:
            records = await self.fetch(idc, sql, job)
            found += [Entry(idc, it[0], it[1], it[2], it[3], POISON, idc, job) for it in records]
        return found

    async def judge(self, feed: Feed) -> None:
        """Laws L1 and L5, with nobody writing and no shard on its way."""
        await self.moves.rest()
        await self.caught_up()
        rows = await self.moves.check_rest()
        owners = {shard: record.owner for shard, record in (await self.moves.shard_records()).items()}
        entries = [it for it in await self.entries() if it.job == "ledger"]
        aside = await self.set_aside()
        entries += aside
        assert not doubled(entries), f"law L5: handled twice: {doubled(entries)[:10]}"
        changes = {it.change for it in entries}
        missed = [(it.region_code, it.shard, it.seq) for it in rows]
        missed = [change for change in missed if change not in changes]
        assert not missed, f"law L5: {len(missed)} changes were never handled: {missed[:10]}"
        assert all(it.region_code in LAWFUL[it.home] and it.region_code in LAWFUL[it.idc] for it in entries), "law L1"
        assert all(owners[it.region_code, it.shard] == it.home for it in entries), "a ledger is not with its shard"
        feed.check(Counter((it.region_code, it.key, it.seq) for it in entries))
        handled = set(self.sink.read_text().splitlines())
        gaps = {f"ledger/{code}/{shard}/{seq}" for code, shard, seq in changes} - handled
        assert not gaps, f"{len(gaps)} changes are missing outside"


@contextmanager
def fleet_over(moves: MoveStack) -> Generator[Fleet]:
    """A fleet without runners yet; those that it gets are ended with the block, and what it has made goes."""
    folder = moves.stack.data_dir / "job-modules"
    folder.mkdir(exist_ok=True)
    fleet = Fleet(moves, folder, moves=moves)
    asyncio.run(fleet.make_ledgers())
    try:
        yield fleet
    finally:
        for runner in fleet.runners:
            runner.send(SIGKILL)
            runner.process.wait()
        asyncio.run(_tidy(fleet))


async def _tidy(fleet: Fleet) -> None:
    for idc in fleet.laws.stack.idcs:
        await fleet.execute(idc, "DROP TABLE effects_ledger")
        await fleet.execute(idc, "TRUNCATE jobs, job_offsets, job_set_aside, job_firings, job_runs")
    fleet.sink.unlink(missing_ok=True)
    fleet.cure.unlink(missing_ok=True)


# ---- clients --------------------------------------------------------------------------------------------------------


@dataclass
class Feed:
    """Clients that write all the while: mostly new rows, and now and then one of a few old ones, or its end."""

    clients: list[Client]
    name: str
    pause: float
    """Seconds between two writes of a client: it is about order, not about load."""
    new: dict[tuple[str, str], int | None] = field(default_factory=dict)
    """RegionCode and key of each new row, and the version that was acknowledged, if one was."""
    errors: Counter[str] = field(default_factory=Counter)
    writes: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Writes until told to stop."""
        await asyncio.gather(*(self._write(number, client, stop) for number, client in enumerate(self.clients)))

    async def _write(self, number: int, client: Client, stop: asyncio.Event) -> None:
        dice = random.Random(f"{self.name}/{number}")
        count = 0
        while not stop.is_set():
            count += 1
            key, draw = f"{self.name}-{number}-{count}", dice.random()
            spend = POISON if dice.random() < POISONED else count
            with_new = draw < 0.8
            if with_new:
                self.new["DE", key] = None
            try:
                if with_new:
                    self.new["DE", key] = (await client.put("customers", "DE", key, {"spend": spend})).version
                elif draw < 0.95:
                    await client.put("customers", "DE", f"{self.name}-old-{dice.randrange(8)}", {"spend": count})
                else:
                    await client.delete("customers", "DE", f"{self.name}-old-{dice.randrange(8)}")
                self.writes += 1
            except RegiongateError as error:
                self.errors[error.reason] += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self.pause)

    async def progress(self, writes: int) -> None:
        """Waits until so many more writes have succeeded."""
        goal = self.writes + writes

        async def is_there() -> bool:
            return self.writes >= goal

        await until(is_there, PATIENCE, f"writes do not go on: {self.errors}")

    def check(self, handled: Counter[tuple[str, str, int]]) -> None:
        """Each new row was handled once; one that was never acknowledged, at most once."""
        by_key: dict[tuple[str, str], list[int]] = {}
        for code, key, seq in handled.elements():
            by_key.setdefault((code, key), []).append(seq)
        for row, version in self.new.items():
            versions = by_key.get(row, [])
            assert versions == [version] or (version is None and len(versions) < 2), "law L5: a new row"


@asynccontextmanager
async def fed(fleet: Fleet, name: str, *, pause: float = 0.02) -> AsyncGenerator[Feed]:
    """Clients write during the block; then all is judged, by then at rest."""
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(regiongate.connect(fleet.moves.stack.gateway(door), purpose="billing"))
            for door in LAWFUL
        ]
        feed = Feed(clients, name, pause)
        task = asyncio.create_task(feed.run(stop))
        try:
            async with watched(fleet):
                yield feed
        finally:
            stop.set()
            await asyncio.wait_for(task, PATIENCE)
    await fleet.judge(feed)


@asynccontextmanager
async def struck(fleet: Fleet) -> AsyncGenerator[list[str]]:
    """Runners are struck during the block; at its end the crew is complete. Tells what was done to them."""
    stop = asyncio.Event()
    done: list[str] = []
    task = asyncio.create_task(fleet.strike_on(stop, done))
    try:
        yield done
    finally:
        stop.set()
        await task
        await fleet.muster()


# ---- law L1 at every instant ----------------------------------------------------------------------------------------


@asynccontextmanager
async def watched(fleet: Fleet, seconds: float = 0.1) -> AsyncGenerator[None]:
    """Looks over and over, during the block, which RegionCodes each database holds anything of (law L1)."""
    found: dict[str, set[str]] = {idc: set() for idc in LAWFUL}
    tasks = [asyncio.create_task(_watch(fleet, idc, codes, seconds)) for idc, codes in found.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for idc, codes in found.items():
        assert codes <= LAWFUL[idc], f"law L1: {idc} held something of {codes - LAWFUL[idc]}"
    assert found["fra"] | found["ams"] == {"DE"}, "nothing was seen"


async def _watch(fleet: Fleet, idc: str, codes: set[str], seconds: float) -> None:
    while True:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            async with fleet.moves.database(idc) as connection:
                while True:
                    codes.update(record[0] for record in await connection.fetch(_PLACES, timeout=10))
                    await asyncio.sleep(seconds)
        await asyncio.sleep(seconds)
