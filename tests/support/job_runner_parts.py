"""One job runner in the test's own event loop, made of the real parts, and what its jobs may be made of."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from policy.follower import Follower
from regiongate.cli.job_gateway import JobGateway
from regionjobs.bell import Bell
from regionjobs.connections import EffectConnections
from regionjobs.job_loop import JobLoop
from regionjobs.membership import Membership
from regionjobs.parts import RunnerParts
from regionjobs.runner import Runner
from regionjobs.scheduler import Scheduler
from regionjobs.settings import RunnerSettings
from rowstore.database import Database
from runtime.etcd import EtcdClient
from runtime.telemetry.tracing import Tracing
from tests.support.cluster import deadline, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from policy.records import Keys
    from regionjobs.definition import Job
    from rowstore.database import DatabaseSettings
    from runtime.telemetry.http import Readiness

CLAIM: Final = "SET token = o.token + 1"
PAGE: Final = "rows_customers"
SELECT: Final = '"adopted"'
"""Words of the statements that find where to go on, read a shard, and read the adopted table."""


class SteppedDatabase(Database):
    """Lets something happen right before the next statement that has certain words, once."""

    def __init__(self, settings: DatabaseSettings) -> None:
        super().__init__(settings)
        self.hooks: dict[str, Callable[[], Awaitable[object]]] = {}

    async def fetch(self, statement: str, *arguments: object, is_repeatable: bool = False) -> Any:
        """As ever, later by that."""
        for words in [words for words in self.hooks if words in statement]:
            await self.hooks.pop(words)()
        return await super().fetch(statement, *arguments, is_repeatable=is_repeatable)


class Recorder:
    """A handler that enters each change into the ledger, and then does what a test has asked for, once."""

    def __init__(self, then: Callable[[], Awaitable[object]] | None = None) -> None:
        self.then = then
        self.batches: list[list[str]] = []
        """What was handed over, batch by batch, as idempotency keys without the name of the job."""

    async def __call__(self, batch: Any) -> None:
        """Enters."""
        changes = [batch.idempotency_key(row).split("/")[1:] for row in batch.rows]
        self.batches.append(["/".join(change) for change in changes])
        await enter(batch, changes)
        then, self.then = self.then, None
        if then is not None:
            await then()

    @property
    def changes(self) -> list[str]:
        """All that was handed over."""
        return [change for batch in self.batches for change in batch]


async def enter(batch: Any, changes: Sequence[Sequence[str]]) -> None:
    """Enters changes (RegionCode, shard, sequence) in the batch's transaction."""
    await batch.connection.exec_driver_sql(
        "INSERT INTO effects_ledger (region_code, shard, job, seq, idc) VALUES ($1, $2, $3, $4, $5)",
        [(region, int(shard), batch.job, int(seq), batch.idc) for region, shard, seq in changes],
    )


@dataclass
class SiteRunner:
    """One runner's parts, running."""

    parts: RunnerParts
    database: SteppedDatabase
    loops: Mapping[str, JobLoop]
    schedulers: Mapping[str, Scheduler]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its session."""
        return self.parts.membership.runner

    def before(self, words: str, hook: Callable[[], Awaitable[object]]) -> None:
        """Lets something happen right before the next statement with these words."""
        self.database.hooks[words] = hook

    @property
    def hooks(self) -> Mapping[str, Callable[[], Awaitable[object]]]:
        """What has not happened yet."""
        return self.database.hooks

    async def sees(self, revision: int) -> None:
        """Waits until it has seen everything up to a revision of etcd."""
        assert await self.parts.follower.wait_seen(revision, deadline())


@asynccontextmanager
async def running_runner(
    endpoint: str,
    keys: Keys,
    idc: str,
    jobs: Sequence[Job],
    *,
    url: str,
    seen: int = 0,
    name: str = "r",
    tracing: Tracing | None = None,
    sdk: Any = None,
    drain: float = 5.0,
    ttl: float = 10.0,
) -> AsyncIterator[SiteRunner]:
    """A runner that has a session, and has seen a revision of etcd, until the block ends.

    `url` is its way to the database, and `sdk` what its handlers get as a client.
    """
    application = f"regiongate-runner-{idc}"
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(EtcdClient(settings(endpoint)))
        database = SteppedDatabase.open(url, size=4, application_name=application)
        stack.push_async_callback(database.close)
        connections = EffectConnections(
            url, size=8, application_name=f"{application}-batch", statement_timeout=timedelta(seconds=30)
        )
        stack.push_async_callback(connections.close)
        follower = Follower(client, keys)
        names = [job.name for job in jobs]
        membership = Membership(client, keys, idc=idc, name=name, jobs=names, ttl=timedelta(seconds=ttl))
        parts = RunnerParts(
            idc=idc,
            follower=follower,
            membership=membership,
            database=database,
            connections=connections,
            bell=Bell(url, f"{application}-bell"),
            tracing=tracing or Tracing("runner", idc, 0.0, None),
            client=lambda: sdk,
            drain=timedelta(seconds=drain),
        )
        await follower.start()
        stack.push_async_callback(follower.stop)
        await membership.start()
        stack.push_async_callback(membership.stop)
        assert await follower.wait_seen(seen, deadline())
        assert await membership.wait_alive(deadline())
        yield await stack.enter_async_context(_looping(parts, database, jobs))


@asynccontextmanager
async def _looping(parts: RunnerParts, database: SteppedDatabase, jobs: Sequence[Job]) -> AsyncIterator[SiteRunner]:
    runner = SiteRunner(
        parts,
        database,
        {job.name: JobLoop(job, parts) for job in jobs},
        {job.name: Scheduler(job, parts) for job in jobs},
    )
    runner.tasks = [asyncio.create_task(loop.run()) for loop in runner.loops.values()]
    background = [asyncio.create_task(parts.bell.run())]
    background += [asyncio.create_task(scheduler.run()) for scheduler in runner.schedulers.values()]
    try:
        yield runner
    finally:
        for loop in runner.loops.values():
            loop.stop()
        await asyncio.wait(runner.tasks, timeout=20)
        for task in [*background, *runner.tasks]:
            task.cancel()
        results = await asyncio.gather(*background, *runner.tasks, return_exceptions=True)
        broken = [it for it in results if isinstance(it, Exception) and not isinstance(it, asyncio.CancelledError)]
        assert not broken, broken


class WholeRunner(NamedTuple):
    """A runner, and the task in which it serves."""

    runner: Runner
    serving: asyncio.Task[None]

    @property
    def readiness(self) -> Readiness:
        """What `/readyz` would say."""
        return self.runner.readiness()

    def loop(self, job: str) -> JobLoop:
        """That of one job."""
        return next(loop for loop in self.runner.loops if loop.job.name == job)


@asynccontextmanager
async def serving_runner(
    endpoint: str, keys: Keys, idc: str, jobs: Sequence[Job], *, url: str, tracing: Tracing | None = None
) -> AsyncIterator[WholeRunner]:
    """A whole runner, as its process has it, until the block ends; it may still be starting."""
    cluster = keys.root.split("/")[2]
    described: dict[str, Any] = {"idc": idc, "database_url": url, "cluster": cluster, "etcd_endpoints": endpoint}
    described |= {"batch_connections": 8, "lease_ttl": 10}
    runner_settings = RunnerSettings(**described)
    tracing = tracing or Tracing("runner", idc, 0.0, None)
    stop = asyncio.Event()
    async with EtcdClient(runner_settings.etcd_settings()) as client:
        runner = Runner(
            runner_settings, jobs, name="whole", client=client, keys=keys, tracing=tracing, door=JobGateway()
        )
        serving = asyncio.create_task(runner.serve(stop))
        try:
            yield WholeRunner(runner, serving)
        finally:
            stop.set()
            await asyncio.wait_for(serving, 30)
