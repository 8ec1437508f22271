"""Job runners as children of the test: started, killed, paused and woken beside a stack; and the ledgers they fill.

A module of jobs is a file that the test writes. The ledger's table has no unique constraint on purpose: what is done
twice must be seen, and not be refused. `LEDGER` is a job that any test of exactly-once effects can use as it is.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from policy.records import RunnerRecord
from runtime.lifecycle import PARENT_VARIABLE
from runtime.supervisor.probe import Health, read_health
from tests.support.law_stack import until
from tests.support.ports import free_port
from tests.support.stack import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from pathlib import Path
    from signal import Signals

    from tests.support.law_stack import LawStack

START_SECONDS = 60.0
STOP_SECONDS = 20.0
LEASE_SECONDS = 2

LEDGER = '''
"""Writes down every change of a customer, in the transaction of the batch."""

import regiongate
from sqlalchemy import text

INSERT = text("INSERT INTO effects_ledger VALUES (:region_code, :shard, :seq, :key, :spend, :idc, :job)")


@regiongate.job(dataset="customers", kind="long-running", batch_size=20, with_deleted=True)
async def ledger(batch):
    await batch.connection.execute(INSERT, [
        {"region_code": row.region_code, "shard": row.shard, "seq": row.version, "key": row.key,
         "spend": row.get("spend"), "idc": batch.idc, "job": batch.job}
        for row in batch.rows
    ])
'''
_LEDGER_TABLE = """
CREATE TABLE IF NOT EXISTS effects_ledger (
    region_code text COLLATE "C" NOT NULL, shard int NOT NULL, seq bigint NOT NULL, key text NOT NULL, spend bigint,
    idc text NOT NULL, job text NOT NULL
)
"""


class Entry(NamedTuple):
    """A line of a ledger: which database holds it, what it says, and who wrote it where."""

    home: str
    region_code: str
    shard: int
    seq: int
    key: str
    spend: int | None
    idc: str
    job: str

    @property
    def change(self) -> tuple[str, int, int]:
        """RegionCode, shard and sequence: what names a change for ever."""
        return self.region_code, self.shard, self.seq


@dataclass
class JobRunner:
    """One runner process."""

    process: subprocess.Popen[bytes]
    idc: str
    name: str
    metrics: str
    log_file: Path

    @property
    def is_running(self) -> bool:
        """Whether the process is there, be it asleep."""
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """What it has said."""
        return self.log_file.read_text(errors="replace")

    def send(self, number: Signals) -> None:
        """Sends a signal, if it runs."""
        if self.is_running:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def pause(self) -> None:
        """Stops it in its tracks."""
        self.send(SIGSTOP)

    def wake(self) -> None:
        """Lets it go on."""
        self.send(SIGCONT)

    async def kill(self) -> None:
        """Ends it at once."""
        self.send(SIGKILL)
        await self._ended(STOP_SECONDS)

    async def _ended(self, seconds: float) -> int:
        """Polled, so that a runner may outlive the event loop that has started it."""

        async def has_ended() -> bool:
            return not self.is_running

        await until(has_ended, seconds, f"{self.name} does not end")
        return self.process.returncode

    async def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Asks it to end, as an operator does; returns its exit code. Kills it after `seconds`, and complains."""
        self.wake()
        self.send(SIGTERM)
        try:
            return await self._ended(seconds)
        except AssertionError:
            await self.kill()
            raise AssertionError(f"{self.name} did not stop:\n{self.log[-3000:]}") from None

    async def health(self) -> Health:
        """What its /readyz says."""
        return await read_health(self.metrics)

    async def ready(self, seconds: float = START_SECONDS) -> None:
        """Waits until it can do all of its work."""
        try:
            await until(self._is_ready, seconds, "")
        except AssertionError as error:
            if not str(error).startswith(self.name):
                error = AssertionError(f"{self.name} is not ready: {await self.health()}\n{self.log[-3000:]}")
            raise error from None

    async def _is_ready(self) -> bool:
        assert self.is_running, f"{self.name} has ended with {self.process.returncode}:\n{self.log[-3000:]}"
        return (await self.health()).is_ready


@dataclass
class JobRunners:
    """The runners of a test; all that still run are ended with the block of `job_runners`."""

    laws: LawStack
    folder: Path
    runners: list[JobRunner] = field(default_factory=list[JobRunner])

    def write_module(self, name: str, text: str = LEDGER) -> Path:
        """Writes a module of jobs; returns the file."""
        file = self.folder / f"{name}.py"
        file.write_text(text)
        return file

    async def start(
        self,
        idc: str,
        module: Path | str,
        *modules: Path | str,
        name: str = "",
        without: tuple[str, ...] = (),
        etcd: str = "",
        clock_ahead: float = 0,
        wait: bool = True,
        environment: dict[str, str] | None = None,
        **settings: object,
    ) -> JobRunner:
        """Starts a runner, and waits until it is ready unless told otherwise.

        Args:
            idc: Where it stands.
            module: File of a module of jobs, or its name.
            modules: More of them.
            name: Of the runner; several may share one.
            without: Names of `tests.support.unguarded.GUARDS` that it runs without.
            etcd: Where it finds etcd, when not where the others do.
            clock_ahead: Seconds by which its wall clock is wrong.
            wait: Until it is ready.
            environment: More variables.
            settings: More of `RunnerSettings`.
        """
        port = free_port()
        name = name or f"{idc}-{port}"
        given = {
            "cluster": self.laws.stack.file.cluster,
            "idc": idc,
            "runner": name,
            "etcd_endpoints": etcd or ",".join(self.laws.stack.etcd_endpoints),
            "database_url": self.laws.stack.idcs[idc].database,
            "metrics_port": port,
            "lease_ttl": LEASE_SECONDS,
            "drain_timeout": 5,
            "trace_sample_ratio": 0,
            **settings,
        }
        variables = {f"REGIONGATE_{key.upper()}": str(value) for key, value in given.items()}
        # If the test dies, the runner ends too: nobody is left to kill it.
        variables[PARENT_VARIABLE] = str(os.getpid())
        if clock_ahead:
            variables |= {
                "TEST_CLOCK_AHEAD": str(clock_ahead),
                "PYTHONPATH": str(ROOT / "tests" / "support" / "shifted_clock"),
            }
        launcher = ("tests.support.unguarded", ",".join(without)) if without else ("regiongate.cli.main",)
        command = [sys.executable, "-m", *launcher, "jobs", "run", *map(str, (module, *modules))]
        log_file = self.laws.stack.data_dir / "logs" / f"runner-{name}-{port}.log"
        process = _spawn(command, {**os.environ, **variables, **(environment or {})}, log_file)
        runner = JobRunner(process, idc, name, f"http://127.0.0.1:{port}", log_file)
        self.runners.append(runner)
        if wait:
            await runner.ready()
        return runner

    async def stop(self) -> None:
        """Ends all; those that do not end by themselves are killed, and complained of."""
        results = await asyncio.gather(*(it.stop() for it in self.runners if it.is_running), return_exceptions=True)
        self.runners.clear()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    # ---- what etcd says ---------------------------------------------------------------------------------------------

    async def sessions(self, idc: str) -> dict[str, RunnerRecord]:
        """The live runners of an IDC by etcd's word: id of the session -> what it says."""
        async with self.laws.etcd() as etcd:
            listing = await etcd.list(self.laws.keys.runners_of(idc))
            return {record.runner: record for record in (RunnerRecord.decode(item.value) for item in listing.items)}

    # ---- what the databases say -------------------------------------------------------------------------------------

    async def make_ledgers(self) -> None:
        """Makes the ledger's table in each IDC, empty."""
        for idc in self.laws.stack.idcs:
            await self.execute(idc, _LEDGER_TABLE)
            await self.execute(idc, "TRUNCATE effects_ledger")

    async def entries(self) -> list[Entry]:
        """Every line of every ledger; databases that are gone are left out, so ask when they are back."""
        idcs = tuple(self.laws.stack.idcs)
        ledgers = await asyncio.gather(*map(self.ledger, idcs))
        return [entry for entries in ledgers for entry in entries]

    async def ledger(self, idc: str) -> list[Entry]:
        """The ledger in an IDC's database."""
        return [Entry(idc, *record.values()) for record in await self.fetch(idc, "SELECT * FROM effects_ledger")]

    async def fetch(self, idc: str, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Asks an IDC's database."""
        async with self.laws.database(idc) as connection:
            return await connection.fetch(statement, *arguments)

    async def execute(self, idc: str, statement: str, *arguments: object) -> None:
        """Orders something of an IDC's database."""
        async with self.laws.database(idc) as connection:
            await connection.execute(statement, *arguments)

    async def lag(self, job: str) -> int:
        """Shards, over all IDCs, that are served and whose newest change the job has not come to."""
        sql = """
            SELECT count(*) FROM shard_fences AS f
            LEFT JOIN job_offsets AS o ON o.job = $1 AND o.region_code = f.region_code AND o.shard = f.shard
            WHERE f.mode IN ('serving', 'draining') AND f.last_seq > coalesce(o.seq, 0)
        """
        counts = await asyncio.gather(*(self.fetch(idc, sql, job) for idc in self.laws.stack.idcs))
        return sum(records[0][0] for records in counts)

    async def caught_up(self, job: str = "ledger", seconds: float = 60) -> None:
        """Waits until the job has come to the end of every shard, with nobody writing."""
        await until(partial(self._is_caught_up, job), seconds, f"{job} does not come to the end")

    async def _is_caught_up(self, job: str) -> bool:
        with suppress(asyncpg.PostgresError, OSError):
            return not await self.lag(job)
        return False


@asynccontextmanager
async def job_runners(laws: LawStack) -> AsyncGenerator[JobRunners]:
    """Runners for a `with` block, with a folder for their modules inside the stack's own."""
    folder = laws.stack.data_dir / "job-modules"
    folder.mkdir(exist_ok=True)
    fleet = JobRunners(laws, folder)
    try:
        yield fleet
    finally:
        await fleet.stop()


def _spawn(command: list[str], environment: dict[str, str], log_file: Path) -> subprocess.Popen[bytes]:
    with log_file.open("ab") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


def doubled(entries: Iterable[Entry]) -> list[tuple[str, int, int]]:
    """Changes that are in the ledgers more than once."""
    return sorted(change for change, count in Counter(entry.change for entry in entries).items() if count > 1)
