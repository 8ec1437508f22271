"""One job on one runner: finds out what is to be done now, and does it in runs, one after the other.

Level, not edge: each turn reads what is (session, table, orders, firings, work) and decides. Events only wake it. What
a turn has decided is one sentence, for the log and for readiness.
"""

from __future__ import annotations

import asyncio
import secrets
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from policy.errors import InvalidJob, RegiongateError
from regionjobs import metrics
from regionjobs.definition import Kind, Misfire
from regionjobs.global_pass import GlobalPass
from regionjobs.pace import Pace
from regionjobs.run import Run
from regionjobs.scan import ShardScanner
from regionjobs.shard_pass import ShardPass
from regionjobs.sharing import Sharing, difference
from regionjobs.work import Handling
from regionjobs.workbench import BatchContext, Workbench
from rowstore.jobs import firings, offsets, registry, runs
from rowstore.jobs.model import JobRecord, PendingShard, RunRecord, RunResult
from runtime.tasks import first_of
from runtime.telemetry.tracing import IDC, link, set_failed, traceparent_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from policy.table import RoutingTable
    from regionjobs.definition import Job
    from regionjobs.parts import RunnerParts
    from regionjobs.sharing import Share
    from regionjobs.work import Lot
    from rowstore.jobs.model import Firing
    from rowstore.model import ShardEpoch
    from runtime.telemetry.tracing import Span

    ShardKey = tuple[str, int]

log = structlog.get_logger("regionjobs")

POLL_SECONDS: Final = 1.0
"""How often it looks when nothing wakes it."""
TELL_SECONDS: Final = 5.0
"""How often a run that goes on tells how far it is."""


class JobLoop:
    """Runs one job for as long as the runner lives."""

    def __init__(self, job: Job, parts: RunnerParts) -> None:
        self._job = job
        self._parts = parts
        self._fetch = parts.database.fetch
        self._sharing = Sharing(job, parts.idc)
        self._bench = Workbench(job, parts.connections, parts.tracing, parts.client)
        self.pace = Pace(job.rate, job.yield_above)
        self._select = job.source.bind(parts.database) if job.source else None
        self._is_registered = False
        self._links: tuple[str, ...] = ()
        """Traces of what ended the last run."""
        self._stopping = asyncio.Event()
        self.sentence = "starting"
        """What it does now, and why."""
        self.problem = ""
        """What keeps it from doing its work; empty when nothing does."""

    @property
    def job(self) -> Job:
        """Its definition."""
        return self._job

    def stop(self) -> None:
        """Lets it end at the next batch boundary."""
        self._stopping.set()

    async def run(self) -> None:
        """Runs until `stop`."""
        while not self._stopping.is_set():
            # Taken before anything is read: what changes meanwhile wakes the wait below.
            events = (self._parts.follower.changed, self._parts.membership.changed, self._parts.bell.ordered)
            try:
                wait = await self._turn()
                self.problem = ""
            except InvalidJob as error:
                wait = self._say(f"cannot run: {error}", problem=str(error))
            except RegiongateError as error:
                wait = self._say(f"waits: {error}", problem=str(error))
            except Exception as error:  # noqa: BLE001 (one job's trouble must not end the others)
                # Not its text, which may quote a row (law L1).
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{where.name}:{where.lineno}"
                log.error("unexpected", job=self._job.name, error=type(error).__name__, where=place)  # noqa: TRY400
                wait = self._say("waits: something unexpected has happened", problem=type(error).__name__)
            if wait > 0:
                await first_of(*events, self._stopping, timeout=wait)

    async def _turn(self) -> float:
        """Looks at everything and does what is to be done; returns how long to wait before the next look, at most."""
        table = self._parts.follower.table
        if table is None:
            return self._say("waits for a policy")
        self._sharing.regions(table.policy)
        if not self._parts.membership.is_alive:
            return self._say("waits for a session in etcd")
        record = await self._register()
        if record.is_paused:
            return self._say(f"is paused by {record.paused_by or 'somebody'}")
        await runs.lose(self._fetch, self._job.name, list(self._parts.membership.members))
        share = self._sharing.share(table, self._parts.membership.members, self._parts.membership.runner)
        metrics.SHARDS.labels(self._job.name).set(len(share))
        if self._job.kind is Kind.LONG_RUNNING:
            if not share:
                return self._say("has no shards here now")
            return await self._run(table, share, None)
        return await self._turn_batch(table, share)

    async def _turn_batch(self, table: RoutingTable, share: Share) -> float:
        waiting = await firings.open_firings(self._fetch, self._job.name)
        firing = self._choose(waiting)
        time = firing.scheduled_time if firing else None
        if not await self._find(share, time, is_batch=True):
            ended = [await self._finish(it, table) for it in waiting]
            if any(ended):
                return 0.0
            return self._say("waits for the other runners" if waiting else "waits for its next time")
        return await self._run(table, share, firing)

    def _choose(self, waiting: Sequence[Firing]) -> Firing | None:
        """The firing to work for: the newest, whose pass counts for older ones, too; with RUN_ALL one by one."""
        if not waiting:
            return None
        return waiting[0] if self._job.misfire is Misfire.RUN_ALL else waiting[-1]

    async def _find(self, share: Share, firing: datetime | None, *, is_batch: bool) -> list[PendingShard]:
        """Shards of the share with work, those with rows to be tried again first."""
        if not share:
            return []
        regions = list({shard.region_code for shard in share})
        found = await offsets.replays_wanted(self._fetch, self._job.name, regions)
        if firing is not None or not is_batch:
            found += await offsets.pending(
                self._fetch, self._job.name, regions, firing=firing, is_global=self._job.is_global
            )
        unique = {(it.region_code, it.shard, it.epoch): it for it in found}
        return [it for key, it in unique.items() if key in share]

    async def _finish(self, firing: Firing, table: RoutingTable) -> bool:
        """Ends a firing if every shard of this IDC has had its pass."""
        regions = self._sharing.regions(table.policy)
        ended, followed = await firings.finish(
            self._fetch, self._job.name, firing.scheduled_time, regions, is_global=self._job.is_global
        )
        if ended:
            log.info("firing done", job=self._job.name, scheduled_time=firing.scheduled_time.isoformat())
            for name in followed:
                metrics.FIRINGS.labels(name, "after").inc()
            await firings.prune(self._fetch, self._job.name)
            await runs.prune(self._fetch, self._job.name)
            await registry.ring(self._fetch)
        return ended

    async def _register(self) -> JobRecord:
        """The job as the database has it, made known at first."""
        job = self._job
        if not self._is_registered:
            record = await registry.register(self._fetch, record_of(job))
            self._is_registered = True
            return record
        record = await registry.get(self._fetch, job.name)
        if record is None:
            self._is_registered = False
            raise InvalidJob(f"job {job.name} is gone from the database", field_name="name")
        return record

    # ---- a run ------------------------------------------------------------------------------------------------------

    async def _run(self, table: RoutingTable, share: Share, firing: Firing | None) -> float:
        name, span = self._job.name, self._start_span(firing)
        context = BatchContext(
            job=name,
            idc=self._parts.idc,
            policy_revision=table.policy.revision,
            scheduled_time=firing.scheduled_time if firing else None,
            stopping=asyncio.Event(),
            traceparent=traceparent_of(span),
        )
        handling = Handling(self._bench, context, self._fetch, self.pace, lambda lot: self._still(share, lot))
        run = self._make_run(table, share, handling)
        record = RunRecord(
            run=secrets.token_hex(8),
            job=name,
            runner=self._parts.membership.runner,
            policy_revision=table.policy.revision,
            shards=len(share),
            result=RunResult.RUNNING,
            scheduled_time=context.scheduled_time,
            traceparent=context.traceparent,
        )
        await runs.start(self._fetch, record)
        self._say(f"runs over {len(share)} shards by policy revision {table.policy.revision}")
        metrics.RUNNING.labels(name).set(1)
        watchers = [
            asyncio.create_task(self._watch(run, share), name=f"job-{name}-watch"),
            asyncio.create_task(self._look_after(run, record, handling), name=f"job-{name}-look-after"),
        ]
        result, reason = RunResult.FAILED, "broken"
        try:
            result = await run.go(self._parts.drain.total_seconds())
            reason = run.reason
        finally:
            for watcher in watchers:
                watcher.cancel()
            metrics.RUNNING.labels(name).set(0)
            metrics.RUNS.labels(name, result.value).inc()
            await asyncio.gather(*watchers, return_exceptions=True)
            await self._tell_end(replace(record, result=result, reason=reason), handling, span)
        if firing is not None and result is RunResult.DONE:
            await self._finish(firing, table)
        return 0.0

    def _start_span(self, firing: Firing | None) -> Span | None:
        links = [*self._links, *([firing.traceparent] if firing and firing.traceparent else [])]
        self._links = ()
        return self._parts.tracing.start(
            "job.run",
            root=True,
            # A run is recorded when what caused it was.
            is_wanted=bool(links),
            attributes={IDC: self._parts.idc, "regiongate.job": self._job.name},
            links=links,
        )

    def _make_run(self, table: RoutingTable, share: Share, handling: Handling) -> Run:
        is_batch = self._job.kind is Kind.BATCH
        runner = self._parts.membership.runner
        regions = frozenset(shard.region_code for shard in share)
        found: dict[ShardKey, PendingShard] = {}

        async def find() -> list[tuple[ShardKey, int]]:
            firing = handling.firing
            pending = await self._find(share, firing, is_batch=is_batch)
            if firing != handling.context.scheduled_time:
                # Without an await before the works learn of their new goals: no pass ends too early.
                handling.context = replace(handling.context, scheduled_time=firing)
            if self._select is not None:
                found.clear()
            found.update({(it.region_code, it.shard): it for it in pending})
            if self._select is not None:
                return [(GlobalPass.key, 0)] if pending else []
            return [((it.region_code, it.shard), it.last_seq) for it in pending]

        if self._select is not None:
            select = self._select
            return Run(
                handling,
                self._parts.bell,
                find,
                # A shard where the job has stopped is not among them, nor one that has had its pass.
                lambda _: GlobalPass(handling, select, [it for it in share if it[:2] in found], table.policy, runner),
                regions,
            )
        scanner = ShardScanner(
            self._parts.database,
            table.policy.datasets[self._job.dataset],
            format=self._job.format,
            with_deleted=self._job.with_deleted,
        )
        return Run(
            handling, self._parts.bell, find, lambda key: ShardPass(handling, scanner, found[key], runner), regions
        )

    def _still(self, share: Share, lot: Lot) -> bool:
        """Whether the shards of a batch are what they were when the run began, and the session holds."""
        table = self._parts.follower.table
        if table is None or not self._parts.membership.is_alive:
            return False
        try:
            regions = self._sharing.regions(table.policy)
        except InvalidJob:
            return False
        shards = share if self._job.is_global else (lot.lead,)
        return all(it.region_code in regions and self._is_ours(table, it) for it in shards)

    def _is_ours(self, table: RoutingTable, shard: Any) -> bool:  # noqa: ANN401 (a ShardEpoch or a Claim)
        route = table.route(shard.region_code, shard.shard)
        return route is not None and route.idc == self._parts.idc and route.epoch == shard.epoch

    async def _watch(self, run: Run, share: Share) -> None:
        """Ends the run as soon as something that it rests on changes, also while the database does not answer."""
        while True:
            events = (self._parts.follower.changed, self._parts.membership.changed, self._stopping)
            if self._end_if_changed(run, share):
                return
            await first_of(*events, timeout=POLL_SECONDS)

    async def _look_after(self, run: Run, record: RunRecord, handling: Handling) -> None:
        """Follows what people and the schedule order meanwhile, and tells now and then how far the run is."""
        now = asyncio.get_running_loop().time
        tell_at = now() + TELL_SECONDS
        while True:
            # The turn that began the run has just looked.
            await first_of(self._parts.bell.ordered, timeout=POLL_SECONDS)
            try:
                await self._follow_orders(run, handling)
                if now() >= tell_at:
                    tell_at = now() + TELL_SECONDS
                    await runs.tell(self._fetch, _tallied(record, handling))
            except RegiongateError as error:
                log.info("run not looked after", job=self._job.name, why=str(error))

    def _end_if_changed(self, run: Run, share: Share) -> bool:
        table, membership = self._parts.follower.table, self._parts.membership
        if self._stopping.is_set():
            run.end("the runner stops")
        elif not membership.is_alive:
            run.end("the session is over", at_once=True)
        elif table is None:
            run.end("there is no policy any more")
        else:
            try:
                wanted = self._sharing.share(table, membership.members, membership.runner)
            except InvalidJob as error:
                run.end(str(error))
                return True
            if wanted == share:
                return False
            self._links = self._traces_of(share ^ wanted)
            run.end(difference(share, wanted, table, self._parts.idc, self._sharing.regions(table.policy)))
        return True

    def _traces_of(self, shards: frozenset[ShardEpoch]) -> tuple[str, ...]:
        """Traces of the rollouts that have changed these shards."""
        known = self._parts.follower.state.shards
        records = (known.get((shard.region_code, shard.shard)) for shard in sorted(shards))
        return tuple(dict.fromkeys(it.record.traceparent for it in records if it and it.record.traceparent))

    async def _follow_orders(self, run: Run, handling: Handling) -> None:
        record = await registry.get(self._fetch, self._job.name)
        if record is None or record.is_paused:
            run.end("paused")
        elif self._job.kind is Kind.BATCH and run.is_holding_up:
            # What is left must not keep the rest from its next pass: this run makes that one, too.
            waiting, known = await firings.open_firings(self._fetch, self._job.name), handling.firing
            newer = self._choose([it for it in waiting if known is None or it.scheduled_time > known])
            if newer is not None:
                handling.firing = newer.scheduled_time
                run.look()

    async def _tell_end(self, record: RunRecord, handling: Handling, span: Span | None) -> None:
        told = _tallied(record, handling)
        self._say(f"run {told.result.value}" + (f": {told.reason}" if told.reason else ""))
        if span is not None:
            for traceparent in self._links:
                link(span, traceparent)
            span.set_attributes({"regiongate.rows": told.rows, "regiongate.job.result": told.result.value})
            if told.result is RunResult.FAILED:
                set_failed(span, "JOB_STOPPED")
            span.end()
        try:
            await runs.tell(self._fetch, told)
        except RegiongateError as error:
            # It stays "running" until its runner is seen to be gone.
            log.warning("the end of a run could not be noted", job=self._job.name, why=str(error))

    def _say(self, sentence: str, *, problem: str = "") -> float:
        """Tells what it does now; returns how long to wait."""
        self.problem = problem
        if sentence != self.sentence:
            self.sentence = sentence
            log.info("job", job=self._job.name, sentence=sentence)
        return POLL_SECONDS


def record_of(job: Job) -> JobRecord:
    """What an IDC's database keeps of a definition."""
    return JobRecord(job.name, job.dataset, job.scan, job.kind.value, job.describe())


def _tallied(record: RunRecord, handling: Handling) -> RunRecord:
    tally = handling.tally
    return replace(record, rows=tally.rows, batches=tally.batches, failures=tally.failures, set_aside=tally.set_aside)
