"""A runner: its session, what it follows, and a loop for each of its jobs."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from policy.errors import InvalidJob, NoPolicy, RegiongateError
from policy.follower import Follower
from regionjobs import metrics
from regionjobs.bell import Bell
from regionjobs.connections import EffectConnections
from regionjobs.job_loop import JobLoop, record_of
from regionjobs.membership import Membership
from regionjobs.parts import RunnerParts
from regionjobs.scheduler import Scheduler
from regionjobs.sharing import regions_of
from rowstore.database import Database
from rowstore.jobs import registry, runs
from rowstore.jobs.listening import RUNNER_APPLICATION
from rowstore.schema import migrate
from runtime.tasks import first_of
from runtime.telemetry.http import Readiness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from policy.records import Keys
    from regionjobs.definition import Job
    from regionjobs.settings import RunnerSettings
    from runtime.etcd import EtcdClient
    from runtime.telemetry.tracing import Tracing


class GatewayDoor(Protocol):
    """How the face reaches gateways: this package knows no SDK."""

    def connect(self, targets: str) -> AbstractAsyncContextManager[Any]:
        """The SDK's client."""
        ...

    def open_ping(self, targets: str) -> AbstractAsyncContextManager[Callable[[float], Awaitable[None]]]:
        """A function that returns once a gateway has answered."""
        ...


log = structlog.get_logger("regionjobs")

_LOOK_SECONDS: Final = 5.0
_PROBE_SECONDS: Final = 1.0
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_PING_SECONDS: Final = 5.0


class Runner:
    """The parts of one runner, started and ended in order."""

    def __init__(
        self,
        settings: RunnerSettings,
        jobs: Sequence[Job],
        *,
        name: str,
        client: EtcdClient,
        keys: Keys,
        tracing: Tracing,
        door: GatewayDoor,
        metrics_address: str = "",
    ) -> None:
        url = settings.database_url.get_secret_value()
        application = f"{RUNNER_APPLICATION}-{settings.idc}"
        # Of this process alone, whatever its name.
        session = f"{runs.BATCH_APPLICATION}{secrets.token_hex(8)}"
        self._settings = settings
        self._jobs = tuple(jobs)
        self._door = door
        self._sdk: Any = None
        self._ping: Callable[[float], Awaitable[None]] | None = None
        longest = max(job.timeout for job in jobs)
        self._database = Database.open(url, size=settings.database_connections, application_name=application)
        self._follower = Follower(client, keys)
        self._parts = RunnerParts(
            idc=settings.idc,
            follower=self._follower,
            membership=Membership(
                client,
                keys,
                idc=settings.idc,
                name=name,
                jobs=[job.name for job in jobs],
                metrics=metrics_address,
                session=session,
                ttl=settings.lease_ttl,
            ),
            database=self._database,
            connections=EffectConnections(
                url,
                size=settings.batch_connections,
                application_name=session,
                statement_timeout=longest,
            ),
            bell=Bell(url, f"{application}-bell"),
            tracing=tracing,
            client=lambda: self._sdk,
            drain=settings.drain_timeout,
        )
        self.loops = tuple(JobLoop(job, self._parts) for job in self._jobs)
        self._schedulers = tuple(Scheduler(job, self._parts) for job in self._jobs)
        self._is_open = False
        self._waits_for = ""
        """What keeps it from starting."""
        self._beat = time.monotonic()

    def readiness(self) -> Readiness:
        """Whether this runner can do its work, and what each of its jobs does."""
        checks = {
            "session": "ok" if self._parts.membership.is_alive else "none",
            "database": "ok" if self._database.is_connected else "not connected",
            "policy": self._follower.problem or ("ok" if self._follower.table is not None else "none yet"),
            "gateway": "ok" if self._sdk is not None else "none has answered",
        }
        if self._waits_for:
            checks["start"] = self._waits_for
        is_ready = self._is_open and all(checks[name] == "ok" for name in ("session", "database", "policy"))
        for loop in self.loops:
            checks[f"job {loop.job.name}"] = loop.sentence
            is_ready = is_ready and not loop.problem
        return Readiness(is_ready, checks)

    async def serve(self, stop: asyncio.Event) -> None:
        """Runs the jobs until the event is set; then batches finish, and others take over at once.

        Raises `InvalidJob` when a job does not fit the policy that is current at the start, or the database.
        """
        parts = self._parts
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._database.close)
            stack.push_async_callback(parts.connections.close)
            stack.push_async_callback(self._follower.stop)
            await self._follower.start()
            if not await self._check(stop):
                return
            await parts.membership.start()
            stack.push_async_callback(parts.membership.stop)
            background = [
                asyncio.create_task(parts.bell.run(), name="jobs-bell"),
                asyncio.create_task(self._keep_client(), name="jobs-client"),
                asyncio.create_task(self._probe(), name="jobs-probe"),
                asyncio.create_task(self._watch_alive(), name="jobs-alive"),
                asyncio.create_task(self._end_lost_sessions(), name="jobs-sessions"),
                *(asyncio.create_task(scheduler.run(), name="jobs-schedule") for scheduler in self._schedulers),
            ]
            stack.push_async_callback(_end, background)
            await self._run_loops(stop)

    async def _run_loops(self, stop: asyncio.Event) -> None:
        self._is_open = True
        log.info("running", jobs=[job.name for job in self._jobs])
        try:
            async with asyncio.TaskGroup() as group:
                for loop in self.loops:
                    group.create_task(loop.run(), name=f"job-{loop.job.name}")
                await stop.wait()
                self._is_open = False
                for loop in self.loops:
                    loop.stop()
        finally:
            log.info("drained")

    async def _check(self, stop: asyncio.Event) -> bool:
        """Waits for database and policy; False when it is to stop before."""
        pause, prepare = _FIRST_PAUSE, partial(migrate, self._settings.database_url.get_secret_value())
        while not stop.is_set():
            try:
                # Gateways do the same; any number may, at once.
                await prepare()
                table = self._follower.table
                if table is None:
                    raise NoPolicy("no policy has been applied yet")
                for job in self._jobs:
                    regions_of(job, table.policy)
                for job in self._jobs:
                    await registry.register(self._database.fetch, record_of(job))
            except InvalidJob:
                raise
            except RegiongateError as error:
                if str(error) != self._waits_for:
                    self._waits_for = str(error)
                    log.info("not ready yet", why=self._waits_for)
            else:
                self._waits_for = ""
                if self._settings.idc not in table.policy.idcs:
                    log.warning("the policy has no such IDC", idc=self._settings.idc)
                return True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
            pause = min(pause * 2, _LONGEST_PAUSE / 5)
        return False

    async def _keep_client(self) -> None:
        """Connects the SDK's client as soon as a gateway of this IDC answers, and keeps it."""
        pause = _FIRST_PAUSE
        while True:
            targets = ",".join(self._settings.gateway) or ",".join(
                record.address for record in self._follower.gateways.get(self._settings.idc, ())
            )
            if targets:
                try:
                    async with self._door.connect(targets) as sdk, self._door.open_ping(targets) as ping:
                        self._sdk, self._ping = sdk, ping
                        pause = _FIRST_PAUSE
                        await self._until_moved(targets)
                except RegiongateError as error:
                    log.info("no client yet", why=str(error))
                finally:
                    self._sdk = self._ping = None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _until_moved(self, targets: str) -> None:
        """Waits until none of the gateways is where it was; what is given by the settings stays."""
        while True:
            changed = self._follower.changed
            live = {record.address for record in self._follower.gateways.get(self._settings.idc, ())}
            if live and not self._settings.gateway and not live & set(targets.split(",")):
                return
            await changed.wait()

    async def _probe(self) -> None:
        """Measures how fast the database answers, for jobs that yield, and how the jobs stand, for the metrics."""
        look_at = 0.0
        while True:
            began = time.perf_counter()
            latency = float("inf")
            with suppress(RegiongateError):
                await self._database.check()
                latency = time.perf_counter() - began
            latency = max(latency, await self._gateway_latency())
            for loop in self.loops:
                loop.pace.observe(latency)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_SECONDS
                for job in self._jobs:
                    with suppress(RegiongateError):
                        await self._measure(job)
            await asyncio.sleep(_PROBE_SECONDS)

    async def _gateway_latency(self) -> float:
        """Seconds that the gateway of this IDC takes to answer; 0 while there is none, or nobody wants to know."""
        if self._ping is None or all(job.yield_above is None for job in self._jobs):
            return 0.0
        began = time.perf_counter()
        try:
            await self._ping(_PING_SECONDS)
        except RegiongateError:
            return float("inf")
        return time.perf_counter() - began

    async def _measure(self, job: Job) -> None:
        table, fetch = self._follower.table, self._database.fetch
        record = await registry.get(fetch, job.name) if table is not None else None
        if table is None or record is None:
            return
        status = await registry.status(fetch, record, list(regions_of(job, table.policy)))
        metrics.LAG_SECONDS.labels(job.name).set(status.lag_seconds)
        metrics.LAG_ROWS.labels(job.name).set(status.lag_rows)
        metrics.SHARDS_STOPPED.labels(job.name).set(status.shards_stopped)
        if status.last_success is not None:
            metrics.LAST_SUCCESS.labels(job.name).set(status.last_success.timestamp())

    async def _end_lost_sessions(self) -> None:
        """Ends the batches of runners that are gone: one that is only paused may hold locks that others need."""
        membership, known = self._parts.membership, set[str]()
        is_aware = False
        while True:
            changed = membership.changed
            if not is_aware:
                # Who was gone before we came. Nobody connects for a batch before its record is there to be seen.
                with suppress(RegiongateError):
                    known |= await runs.sessions(self._database.fetch)
                    is_aware = True
            live = {record.session for record in membership.members.values() if record.session}
            # A view that lacks ourselves is no view: etcd has lost us, or we it.
            if membership.is_alive and (gone := known - live):
                with suppress(RegiongateError):
                    ended = await runs.end_sessions(self._database.fetch, sorted(gone))
                    log.info("runners are gone", runners=len(gone), connections_ended=ended)
                    known -= gone
            known |= live
            await first_of(changed, timeout=_LOOK_SECONDS)

    async def _watch_alive(self) -> None:
        """Keeps the metrics of the session right; a beat that comes late tells of a handler that blocks the loop."""
        while True:
            metrics.IS_ALIVE.set(self._parts.membership.is_alive)
            late = time.monotonic() - self._beat - _PROBE_SECONDS
            if late > _PROBE_SECONDS:
                metrics.LOOP_BLOCKED.inc()
                names = [loop.job.name for loop in self.loops if loop.job.is_coroutine]
                log.warning(
                    "a handler has blocked the event loop: make it a plain function, or let it await",
                    seconds=round(late, 1),
                    jobs=names,
                )
            self._beat = time.monotonic()
            await asyncio.sleep(_PROBE_SECONDS)


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
