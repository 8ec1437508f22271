"""Takes batches through the handler, whatever happens on the way, and gives the slot back when it has to wait.

A batch is asked to go on until it says that it is over, or after how many seconds it wants to go on. In between it
holds no slot: whoever fails and backs off holds up nobody else.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import structlog

from policy.errors import RegiongateError
from regionjobs import metrics
from regionjobs.definition import OnPoison
from regionjobs.failing import Outcome, Part, Verdict, step, whole
from regionjobs.judging import Try, judge
from rowstore.jobs import offsets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regionjobs.batch import Content
    from regionjobs.pace import Pace
    from regionjobs.workbench import BatchContext, Finish, Workbench
    from rowstore.jobs.model import Advance, Claim, SetAside
    from rowstore.jobs.offsets import Fetch

log = structlog.get_logger("regionjobs")


@dataclass(slots=True)
class Tally:
    """What a run has done so far."""

    rows: int = 0
    batches: int = 0
    failures: int = 0
    set_aside: int = 0
    stopped: int = 0


class Lot(Protocol):
    """A batch that can be taken apart: this is where the two scans differ."""

    is_replay: bool
    """Whether the rows were set aside before: they are so again when they fail, whatever the job is defined to do."""

    @property
    def count(self) -> int:
        """Rows in it."""
        ...

    @property
    def lead(self) -> Claim:
        """The claim under which failures are counted."""
        ...

    def content(self, part: Part) -> Content:
        """What the handler gets for a part."""
        ...

    def steps(self, part: Part) -> Sequence[tuple[Claim, Advance]]:
        """What the commit of a part says; that of the last one also reaches over what held no rows."""
        ...

    def finish(self, part: Part) -> Finish | None:
        """What else belongs into the transaction of a part."""
        ...

    def set_aside(self, part: Part, attempts: int, error: BaseException) -> SetAside:
        """The one row of a part, to be set aside."""
        ...

    def culprit(self, part: Part) -> Claim:
        """The claim of the shard that the one row of a part is in."""
        ...


class Handling:
    """What all batches of a run are taken through."""

    def __init__(
        self,
        bench: Workbench,
        context: BatchContext,
        fetch: Fetch,
        pace: Pace,
        still: Callable[[Lot], bool],
    ) -> None:
        """`still` is asked right before a commit: whether the shards are what they were, and the session holds."""
        self.bench = bench
        self.context = context
        self.fetch = fetch
        self.pace = pace
        self.still = still
        self.tally = Tally()
        self.firing = context.scheduled_time
        """The firing that work is looked for; the context follows with the next look."""
        self.got_on = time.monotonic()
        """When a batch was last done."""
        self.rests_until = float("-inf")
        """No batch of the run begins before (`time.monotonic`): to keep its rate, or to let others pass."""

    def rest(self, rows: int, took: float) -> float:
        """Seconds to rest after a batch."""
        pause = self.pace.pause(rows, took)
        if pause > 0:
            self.rests_until = max(self.rests_until, time.monotonic() + pause)
            metrics.PAUSED_SECONDS.labels(self.bench.job.name).inc(pause)
        return pause


class Passage:
    """One batch on its way through the handler."""

    def __init__(self, handling: Handling, lot: Lot) -> None:
        self._handling = handling
        self._lot = lot
        self._job = handling.bench.job
        self._on_poison = OnPoison.SET_ASIDE if lot.is_replay else self._job.on_poison
        failures = lot.lead.failures
        self._parts = whole(lot.count, failures=failures, attempts=self._job.retry.attempts)
        self._took = 0.0

    async def go(self) -> tuple[Verdict, float]:
        """Goes on; returns what it has come to, and how many seconds to wait before what comes next.

        NEXT: the batch is done. AGAIN: call once more, later. GIVE_UP: the claim is to be made anew, after a pause of
        the caller's choice. STOP: the job stops in this shard.
        """
        pause = 0.0
        while self._parts and not pause:
            part = self._parts[0]
            result = await self._try(part)
            self._parts, verdict = step(
                self._parts, result.outcome, attempts=self._job.retry.attempts, on_poison=self._on_poison
            )
            if verdict is Verdict.SET_ASIDE:
                verdict = await self._set_aside(part, result)
            match verdict:
                case Verdict.AGAIN:
                    return self._again(result)
                case Verdict.GIVE_UP:
                    return verdict, 0.0
                case Verdict.STOP:
                    await offsets.stop_at(self._handling.fetch, self._job.name, self._lot.culprit(part))
                    self._handling.tally.stopped += 1
                    return verdict, 0.0
                case _:
                    pause = self._next(part, verdict)
        return (Verdict.AGAIN if self._parts else Verdict.NEXT), pause

    async def _try(self, part: Part) -> Try:
        handling, lot = self._handling, self._lot
        steps = lot.steps(part)
        began = time.perf_counter()
        result = await handling.bench.perform(
            handling.context,
            lot.content(part),
            steps,
            attempt=part.failures + 1,
            still=lambda: handling.still(lot),
            finish=lot.finish(part),
        )
        self._took = time.perf_counter() - began
        if result.outcome is Outcome.DONE:
            self._count(part, steps)
            return result
        log.info(
            "batch not done",
            job=self._job.name,
            region_code=lot.lead.region_code,
            shard=lot.lead.shard,
            outcome=result.outcome.value,
            rows=part.stop - part.start,
            # Its text may quote a row (law L1).
            error=type(result.error).__name__,
        )
        if result.outcome is Outcome.PASSING:
            await self._note_obstacle(result)
        return await self._note(result) if result.outcome is Outcome.FAILED else result

    async def _note_obstacle(self, result: Try) -> None:
        """Lets people see why the shard waits, if the database can be told."""
        held, name = self._lot.lead, type(result.error).__name__
        with contextlib.suppress(RegiongateError):
            await offsets.note_obstacle(self._handling.fetch, self._job.name, held, name)

    async def _note(self, result: Try) -> Try:
        """A failure counts only when it could be noted: while the database is down, every handler fails."""
        self._handling.tally.failures += 1
        name = type(result.error).__name__
        try:
            await offsets.note_failure(self._handling.fetch, self._job.name, self._lot.lead, name)
        except RegiongateError as error:
            return Try(Outcome.LOST if judge(error) is Outcome.LOST else Outcome.PASSING, error)
        return result

    async def _set_aside(self, part: Part, result: Try) -> Verdict:
        lot, error = self._lot, result.error or RuntimeError("unknown")
        done = await self._handling.bench.set_aside(
            lot.set_aside(part, self._job.retry.attempts, error), _without_rows(lot.steps(part)), error
        )
        if done.outcome is Outcome.DONE:
            self._handling.tally.set_aside += 1
            return Verdict.NEXT
        # Whatever it was, the shard is read again from where the database says that it stands.
        return Verdict.GIVE_UP

    def _again(self, result: Try) -> tuple[Verdict, float]:
        if result.outcome is Outcome.PASSING:
            # Perhaps a commit whose answer was lost: only the database knows where the shard stands.
            return Verdict.GIVE_UP, 0.0
        return Verdict.AGAIN, self._job.retry.pause(self._parts[0].failures)

    def _next(self, part: Part, verdict: Verdict) -> float:
        if verdict is not Verdict.NEXT:
            return 0.0
        return self._handling.rest(part.stop - part.start, self._took)

    def _count(self, part: Part, steps: Sequence[tuple[Claim, Advance]]) -> None:
        tally, name = self._handling.tally, self._job.name
        tally.batches += 1
        self._handling.got_on = time.monotonic()
        tally.rows += part.stop - part.start
        for held, advance in steps:
            if advance.rows:
                metrics.ROWS.labels(name, held.region_code).inc(advance.rows)


def _without_rows(steps: Sequence[tuple[Claim, Advance]]) -> list[tuple[Claim, Advance]]:
    """A row that is set aside is not handled."""
    return [(held, replace(advance, rows=0)) for held, advance in steps]
