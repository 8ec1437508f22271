"""Turns scheduled times into firings, each once in an IDC, by the clock of the IDC's database.

Every runner of a job does this; the store lets one of them win. A runner's own clock only decides when to look.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from policy.errors import RegiongateError
from regionjobs import metrics
from regionjobs.schedule import due
from regionjobs.triggers import At, Cron, Every, next_after
from rowstore.jobs import firings, registry

if TYPE_CHECKING:
    from datetime import datetime

    from regionjobs.definition import Job
    from regionjobs.parts import RunnerParts
    from rowstore.jobs.model import JobRecord

log = structlog.get_logger("regionjobs")

LONGEST_LOOK: Final = timedelta(seconds=30)
"""Clocks are compared at least so often."""
_TROUBLE_SECONDS: Final = 1.0


class Scheduler:
    """Fires one job."""

    def __init__(self, job: Job, parts: RunnerParts) -> None:
        self._job = job
        self._parts = parts
        self._fetch = parts.database.fetch

    async def run(self) -> None:
        """Fires for ever; returns at once for a job that no time triggers."""
        if not isinstance(self._job.trigger, Every | Cron | At):
            return
        while True:
            try:
                wait = await self.look()
            except RegiongateError as error:
                log.info("not scheduled", job=self._job.name, why=str(error))
                wait = _TROUBLE_SECONDS
            await asyncio.sleep(wait)

    async def look(self) -> float:
        """Fires what is due; returns seconds until something may be due again."""
        if not self._parts.membership.is_alive:
            return _TROUBLE_SECONDS
        record = await registry.get(self._fetch, self._job.name)
        if record is None or record.create_time is None or record.is_paused:
            # What passes meanwhile is for the misfire rule.
            return _TROUBLE_SECONDS
        now = await registry.now(self._fetch)
        known = record.last_scheduled or record.create_time
        found = due(self._job.trigger, self._job.misfire, known=known, now=now)
        if found is None:
            upcoming = next_after(self._job.trigger, now)
            if record.next_scheduled is None and upcoming is not None:
                await self._note(record, known, upcoming)
            return self._until(upcoming, now)
        won = await firings.schedule(
            self._fetch,
            self._job.name,
            known=record.last_scheduled,
            through=found.through,
            times=found.times,
            upcoming=found.upcoming,
            misfires=found.misfires,
        )
        if won:
            log.info("fired", job=self._job.name, times=len(found.times), misfires=found.misfires)
            metrics.FIRINGS.labels(self._job.name, "schedule").inc(len(found.times))
            metrics.MISFIRES.labels(self._job.name).inc(found.misfires)
            await registry.ring(self._fetch)
        return self._until(found.upcoming, now)

    async def _note(self, record: JobRecord, known: datetime, upcoming: datetime) -> None:
        """Lets people see when the first firing will be."""
        await firings.schedule(
            self._fetch, self._job.name, known=record.last_scheduled, through=known, times=(), upcoming=upcoming
        )

    def _until(self, upcoming: datetime | None, now: datetime) -> float:
        wait = LONGEST_LOOK if upcoming is None else min(upcoming - now, LONGEST_LOOK)
        return max(wait.total_seconds(), 0.0)
