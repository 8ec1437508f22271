"""Tries a part of a batch: calls the handler in a transaction, and commits it with the offset.

This is where law L5 is kept on the runner's side: handler, offset and commit share one transaction, and the offset's
update decides. Everything that a try can come to is turned into an `Outcome`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import structlog
from sqlalchemy.exc import SQLAlchemyError

from policy.errors import InvalidJob, LimitReached, RegiongateError
from regionjobs import metrics
from regionjobs.batch import Batch, Waiting
from regionjobs.judging import Outcome, ShardsChanged, Try, judge
from rowstore.driver_errors import DRIVER_ERRORS
from rowstore.jobs import offsets
from runtime.tasks import is_cancelled
from runtime.telemetry.tracing import IDC, ROWS, set_failed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from datetime import datetime

    from regionjobs.batch import Content
    from regionjobs.connections import EffectConnections, Effects
    from regionjobs.definition import Job
    from rowstore.jobs.model import Advance, Claim, SetAside
    from runtime.telemetry.tracing import Tracing

    Steps = Sequence[tuple[Claim, Advance]]
    Finish = Callable[[Effects], Awaitable[None]]

log = structlog.get_logger("regionjobs")


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What all batches of a run share."""

    job: str
    idc: str
    policy_revision: int
    scheduled_time: datetime | None
    stopping: asyncio.Event
    traceparent: str = ""


_LOST_COMMIT: Final = (TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a commit raises whose connection was ended meanwhile, beside what SQLAlchemy makes of it."""


class _Call:
    """One call of a handler."""

    __slots__ = ("content", "has_begun", "is_committing", "thread")

    def __init__(self, content: Content) -> None:
        self.content = content
        self.has_begun = False
        """Whether the handler was called."""
        self.is_committing = False
        self.thread: asyncio.Future[None] | None = None

    def judge(self, error: BaseException) -> Outcome:
        """What an error says of the batch: nothing against its rows, unless their handler had a part in it."""
        outcome = judge(error)
        is_slow_commit = self.is_committing and isinstance(error, _LOST_COMMIT)
        is_ours = is_slow_commit or not self.has_begun
        return Outcome.PASSING if is_ours and outcome is Outcome.FAILED else outcome


class Workbench:
    """What a runner needs to try batches of one job."""

    def __init__(
        self,
        job: Job,
        connections: EffectConnections,
        tracing: Tracing,
        client: Callable[[], Any],
    ) -> None:
        """`client` gives the SDK's client, or None while no gateway has answered."""
        self.job = job
        self._connections = connections
        self._tracing = tracing
        self._client = client
        self._places = asyncio.Semaphore(job.concurrency)
        """For handlers at work: also those that were given up, and have not returned."""

    async def perform(
        self,
        context: BatchContext,
        content: Content,
        steps: Steps,
        *,
        attempt: int = 1,
        still: Callable[[], bool] = lambda: True,
        finish: Finish | None = None,
    ) -> Try:
        """Hands rows to the handler and commits.

        Args:
            context: Of the run.
            content: The rows; when there are none, the handler is not called.
            steps: What the commit says of each shard.
            attempt: 1 for the first.
            still: Asked right before the commit: whether the shards are what they were.
            finish: What else is to be done in the transaction.
        """
        began = time.perf_counter()
        span = self._tracing.start("job.batch", traceparent=context.traceparent, attributes={IDC: context.idc})
        call = _Call(content)
        try:
            async with (
                self._place(call),
                self._connections.take() as effects,
                asyncio.timeout(self.job.timeout.total_seconds()),
            ):
                if content.count:
                    await self._call(context, call, effects, attempt)
                if not still():
                    raise ShardsChanged
                call.is_committing = True
                await self._commit(effects, steps, finish)
            result = Try(Outcome.DONE)
        except GeneratorExit:
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            result = Try(call.judge(error), error)
            set_failed(span, _reason(error))
        if span is not None:
            span.set_attribute(ROWS, content.count)
            span.end()
        metrics.BATCHES.labels(self.job.name, result.outcome.value).inc()
        metrics.BATCH_SECONDS.labels(self.job.name).observe(time.perf_counter() - began)
        await self._wait_for_thread(call)
        return result

    @contextlib.asynccontextmanager
    async def _place(self, call: _Call) -> AsyncGenerator[None]:
        """Keeps the job's concurrency, also when handlers do not return: whoever waits too long tries again."""
        try:
            async with asyncio.timeout(self.job.timeout.total_seconds()):
                await self._places.acquire()
        except TimeoutError:
            raise LimitReached("as many handlers as may be have not returned", limit="concurrency") from None
        try:
            yield
        finally:
            if call.thread is None:
                self._places.release()
            else:
                call.thread.add_done_callback(lambda _: self._places.release())

    async def _call(self, context: BatchContext, call: _Call, effects: Effects, attempt: int) -> None:
        client = self._client()
        call.has_begun = True
        if self.job.is_coroutine:
            batch = Batch(context, call.content, effects.connection, client, attempt)
            try:
                check_returned(await self.job.handler(batch))
            finally:
                batch.close()
            return
        loop = asyncio.get_running_loop()
        waiting = None if client is None else Waiting(client, loop)
        batch = Batch(context, call.content, Waiting(effects.connection, loop), waiting, attempt)
        call.thread = start_thread(self.job.name, self.job.handler, batch)
        try:
            await asyncio.shield(call.thread)
        finally:
            batch.close()

    async def _wait_for_thread(self, call: _Call) -> None:
        """A function that was given up runs on, without a transaction; until it returns, its slot is taken."""
        if call.thread is None or call.thread.done():
            return
        log.warning("the handler has not returned in time; its batch is rolled back", job=self.job.name)
        await asyncio.wait({call.thread})

    async def _commit(self, effects: Effects, steps: Steps, finish: Finish | None) -> None:
        await effects.check()
        if finish is not None or len(steps) != 1:
            await effects.begin()
        if finish is not None:
            await finish(effects)
        if len(steps) == 1:
            await offsets.advance(effects.fetch, self.job.name, *steps[0])
        else:
            await offsets.advance_many(effects.fetch, self.job.name, steps)
        if effects.is_used:
            await effects.commit()

    async def set_aside(self, row: SetAside, steps: Steps, why: BaseException) -> Try:
        """Sets a row aside and moves the offset past it, in one transaction."""
        try:
            async with asyncio.timeout(self.job.timeout.total_seconds()), self._connections.take() as effects:

                async def note(effects: Effects) -> None:
                    await offsets.set_aside(effects.fetch, self.job.name, row)

                await self._commit(effects, steps, note)
        except (RegiongateError, SQLAlchemyError, TimeoutError, *DRIVER_ERRORS) as error:
            return Try(Outcome.LOST if judge(error) is Outcome.LOST else Outcome.PASSING, error)
        metrics.SET_ASIDE.labels(self.job.name, row.region_code).inc()
        log.warning(
            "row set aside",
            job=self.job.name,
            region_code=row.region_code,
            shard=row.shard,
            seq=row.seq,
            error=type(why).__name__,
        )
        return Try(Outcome.DONE)


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, RegiongateError) else type(error).__name__.upper()


def check_returned(value: object) -> None:
    """Raises `InvalidJob` for what has not run yet: the rows would count as handled, and nothing was done."""
    if inspect.iscoroutine(value):
        value.close()
    if inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
        kind = type(value).__name__
        raise InvalidJob(f"the handler returned a {kind} that nobody waits for: is it async?", field_name="handler")


def start_thread(name: str, function: Callable[[Batch], Any], batch: Batch) -> asyncio.Future[None]:
    """Runs a plain function in a thread of its own, which ends with the process if the function never returns."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        result: BaseException | None = None
        try:
            check_returned(function(batch))
        except StopIteration:
            # No future takes it, and it would end another loop than its own.
            result = RuntimeError("the handler raised StopIteration")
        except BaseException as error:  # noqa: BLE001 (handed to whoever waits)
            result = error
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:
            return  # the loop has ended meanwhile

    # What it raises when nobody waits any more is for nobody's log: it may quote a row (law L1).
    done.add_done_callback(lambda it: it.cancelled() or it.exception())
    threading.Thread(target=work, name=f"job-{name}", daemon=True).start()
    return done
