"""One shard worked on as a run does, without a run: by the real passes, on a real PostgreSQL, for handlers that fail.

Each test has a shard of its own in a database that all of them share. The ledger forbids nothing: what is done twice
must be seen.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from regionjobs.connections import EffectConnections
from regionjobs.definition import Kind, Retry, forget_registered, job
from regionjobs.pace import Pace
from regionjobs.scan import ShardScanner
from regionjobs.shard_pass import ShardPass
from regionjobs.work import Handling
from regionjobs.workbench import BatchContext, Workbench
from rowstore.database import Database
from rowstore.jobs import registry
from rowstore.jobs.model import JobRecord, PendingShard
from runtime.telemetry.tracing import Tracing
from tests.support.job_stores import LEDGER
from tests.support.postgres import create_database
from tests.support.row_databases import CUSTOMERS, delete, prepare, put, row_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from datetime import datetime

    from regionjobs.definition import Job
    from regionjobs.work import Lot, Tally
    from rowstore.jobs.model import SetAside
    from runtime.embedded.postgres import EmbeddedPostgres
    from tests.support.row_databases import RowDatabase

SHARDS: Final = 200
PATIENCE: Final = 20.0
QUICK: Final = Retry(3, timedelta(milliseconds=1), timedelta(milliseconds=5))
OUTSIDE: Final = """
CREATE TABLE outside (shard integer NOT NULL, word text NOT NULL)
"""
"""What a handler does when it gets out of its transaction shows here."""


async def prepare_shards(server: EmbeddedPostgres) -> str:
    """A database with many shards; returns its URL."""
    url = await create_database(server)
    await prepare(url, shards=SHARDS)
    async with Database.open(url) as database:
        for statement in (LEDGER, OUTSIDE, "CREATE TABLE numbers (shard integer, number integer UNIQUE)"):
            await database.fetch(statement)
    return url


class Poison(Exception):
    """Some rows cannot be handled."""


async def enter(batch: Any) -> None:
    """A handler that enters each change into the ledger."""
    await batch.connection.exec_driver_sql(
        "INSERT INTO effects_ledger (region_code, shard, seq) VALUES ($1, $2, $3)",
        [(row.region_code, row.shard, row.version) for row in batch.rows],
    )


def poisoned(*keys: str, error: Callable[[], BaseException] = Poison) -> Callable[[Any], Awaitable[None]]:
    """A handler that enters, and then fails when one of these is in the batch."""

    async def handle(batch: Any) -> None:
        await enter(batch)
        if {row.key for row in batch.rows} & set(keys):
            raise error()

    return handle


def made(handler: Callable[..., Any], **words: Any) -> Job:
    """A job over customers that never ends, fails quickly, and is tried again at once; others are forgotten."""
    forget_registered()
    words = {"name": "settle", "dataset": "customers", "kind": Kind.LONG_RUNNING, "retry": QUICK} | words
    return job(**words)(handler)


@dataclass
class FailureSite:
    """A shard, and what works on it."""

    idc: RowDatabase
    shard: int
    database: Database
    """The runner's, for claims and pages."""
    connections: EffectConnections
    """The runner's, for batches."""
    last: Handling | None = None
    """Of the newest pass."""

    def handling(
        self,
        job: Job,
        *,
        firing: datetime | None = None,
        client: object = None,
        still: Callable[[Lot], bool] = lambda _: True,
    ) -> Handling:
        """As a run has it."""
        bench = Workbench(job, self.connections, Tracing("runner", "fra", 0.0, None), lambda: client)
        context = BatchContext(job.name, "fra", 1, firing, asyncio.Event())
        return Handling(bench, context, self.database.fetch, Pace(None, None), still)

    async def begin(self, job: Job, *, runner: str = "one.1", **options: Any) -> ShardPass:
        """A pass over what is there now."""
        await registry.register(
            self.idc.database.fetch, JobRecord(job.name, job.dataset, job.scan, job.kind.value, job.describe())
        )
        scanner = ShardScanner(self.database, CUSTOMERS, format=job.format, with_deleted=job.with_deleted)
        self.last = self.handling(job, **options)
        last_seq = await self.idc.hand.fetchval("SELECT last_seq FROM shard_fences WHERE shard = $1", self.shard)
        pending = PendingShard("DE", self.shard, 1, last_seq, 0)
        return ShardPass(self.last, scanner, pending, runner)

    async def work(self, job: Job, **options: Any) -> Tally:
        """A pass from its beginning to its end, with the waits that it asks for."""
        begun = await self.begin(job, **options)
        return await self.finish(begun)

    async def finish(self, begun: ShardPass) -> Tally:
        """A pass to its end."""
        try:
            async with asyncio.timeout(PATIENCE):
                while (wait := await begun.go()) is not None:  # noqa: ASYNC110 (the pass says how long)
                    await asyncio.sleep(wait)
        finally:
            await begun.close()
        assert self.last is not None
        return self.last.tally

    # ---- what there is ----------------------------------------------------------------------------------------------

    async def put(self, *keys: str) -> list[int]:
        """Writes rows; returns their sequences."""
        outcomes = await self.idc.store.write(CUSTOMERS, [put(self.key(key), {}, shard=self.shard) for key in keys])
        return [it.version for it in outcomes]

    async def delete(self, key: str) -> None:
        """Deletes one."""
        await self.idc.store.write(CUSTOMERS, [delete(self.key(key), shard=self.shard)])

    def key(self, key: str) -> str:
        """Keys of one shard are not those of another."""
        return f"{key}-{self.shard}"

    def keys(self, keys: Iterable[str]) -> list[str]:
        """The same for several."""
        return [self.key(key) for key in keys]

    async def ledger(self) -> list[int]:
        """Sequences that were entered, each as often as it was."""
        query = "SELECT seq FROM effects_ledger WHERE shard = $1 ORDER BY seq"
        return [record[0] for record in await self.idc.hand.fetch(query, self.shard)]

    async def outside(self) -> list[str]:
        """What has got out."""
        query = "SELECT word FROM outside WHERE shard = $1 ORDER BY word"
        return [record[0] for record in await self.idc.hand.fetch(query, self.shard)]

    async def asides(self, job: str = "settle") -> list[SetAside]:
        """Rows that are set aside in the shard, in the order of their sequences."""
        rows, _ = await registry.set_aside_rows(self.idc.database.fetch, job, "DE", 10_000)
        return [row for row in rows if row.shard == self.shard]

    async def aside_keys(self) -> list[str]:
        """Their keys."""
        return [row.key for row in await self.asides()]

    async def offset(self, job: str = "settle") -> Any:
        """The record of the job's offset."""
        query = "SELECT * FROM job_offsets WHERE job = $1 AND region_code = 'DE' AND shard = $2"
        return await self.idc.hand.fetchrow(query, job, self.shard)

    async def sessions(self, application: str) -> Sequence[str]:
        """States of the batches' sessions at the server."""
        query = "SELECT state FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()"
        return [record[0] for record in await self.idc.hand.fetch(query, application)]


@asynccontextmanager
async def failure_site(
    url: str, shard: int, *, by: str = "", size: int = 4, statement_timeout: float = 20.0
) -> AsyncIterator[FailureSite]:
    """A shard of a prepared database; the runner's way to it is `by` another URL, where one is given."""
    async with AsyncExitStack() as stack:
        idc = await stack.enter_async_context(row_database(url))
        database = await stack.enter_async_context(
            Database.open(by or url, size=4, statement_timeout=timedelta(seconds=2))
        )
        connections = EffectConnections(
            by or url,
            size=size,
            application_name=f"batches-{shard}",
            statement_timeout=timedelta(seconds=statement_timeout),
        )
        stack.push_async_callback(connections.close)
        yield FailureSite(idc, shard, database, connections)
