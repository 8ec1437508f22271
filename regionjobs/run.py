"""One run of a job on one runner: a fixed set of shards, one policy revision, until it is done or something changes.

Pieces of work are dealt out to slots; each gives its slot back when it has to wait. The run decides when to look for
more work, and it ends at a batch boundary: `end` sets `stopping`, and what is at work finishes its batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from regionjobs.definition import Kind
from regionjobs.slots import Slots
from rowstore.jobs.model import RunResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from regionjobs.bell import Bell
    from regionjobs.work import Handling

    ShardKey = tuple[str, int]

log = structlog.get_logger("regionjobs")

POLL_SECONDS: Final = 1.0
"""How often a long-running job looks for work when the bell does not ring."""


LOOK_SHARE: Final = 5.0
"""Times as long as a look has taken, until the bell may cause the next one."""
END_SECONDS: Final = 5.0
"""How long a handler that was cut short may take to notice it."""
LONG_SECONDS: Final = 1.0
"""When no batch of a run has been done for so long, it counts as not getting on."""
MAX_AT_HAND: Final = 256
"""Pieces of work that a run has at hand; more are found when these become few."""


class Work(Protocol):
    """A piece of work: a shard's scan, or that of a whole source."""

    @property
    def key(self) -> ShardKey:
        """RegionCode and number of the shard."""
        ...

    def aim(self, last_seq: int) -> None:
        """There is more to do than was known."""
        ...

    async def go(self) -> float | None:
        """Goes on; returns None when it is over, or after how many seconds it wants to go on."""
        ...

    async def close(self) -> None:
        """Ends what has been begun ahead."""
        ...


class Run:
    """Deals work out until none is left (batch), or for ever (long-running)."""

    def __init__(
        self,
        handling: Handling,
        bell: Bell,
        find: Callable[[], Awaitable[Sequence[tuple[ShardKey, int]]]],
        make: Callable[[ShardKey], Work],
        regions: frozenset[str],
    ) -> None:
        """Args are what differs between scans.

        Args:
            handling: What batches are taken through.
            bell: Says that there may be more.
            find: Shards of the run that have work, and up to which sequence.
            make: Begins work on one of them.
            regions: RegionCodes of the run's shards.
        """
        self._handling = handling
        self._bell = bell
        self._find = find
        self._make = make
        self._regions = regions
        self._job = handling.bench.job
        self._slots = Slots(self._job.concurrency)
        self._works: dict[ShardKey, Work] = {}
        self._ready_at: dict[ShardKey, float] = {}
        self._tasks: dict[asyncio.Task[float | None], ShardKey] = {}
        self._nudged = asyncio.Event()
        self._cancelled = False
        self._has_more = False
        self.reason = ""

    @property
    def is_holding_up(self) -> bool:
        """Whether what is left keeps others from a next pass: a RegionCode is through, or nothing gets on."""
        if not self._works or self._has_more:
            return False
        is_through = not self._regions <= {region_code for region_code, _ in self._works}
        return is_through or time.monotonic() > self._handling.got_on + LONG_SECONDS

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end."""
        return self._handling.context.stopping.is_set()

    def end(self, reason: str, *, at_once: bool = False) -> None:
        """Lets the run end at the next batch boundary, or at once: then what is at work is rolled back."""
        if not self.is_ending:
            self.reason = reason
            self._handling.context.stopping.set()
        if at_once:
            self._cancelled = True
            for task in self._tasks:
                task.cancel()

    def look(self) -> None:
        """Lets it look for work soon."""
        self._nudged.set()

    async def go(self, drain: float) -> RunResult:
        """Runs; `drain` is how many seconds batches at work have to finish once the run is to end."""
        try:
            await self._deal_out()
            if self.is_ending:
                await self._drain(drain)
                return RunResult.ENDED
            if self._handling.tally.stopped:
                self.reason = "stopped at a row that keeps failing"
                return RunResult.FAILED
            return RunResult.DONE
        finally:
            await self._close()

    async def _deal_out(self) -> None:
        stopping = self._handling.context.stopping
        is_batch = self._job.kind is Kind.BATCH
        look_at = again_at = 0.0
        while not stopping.is_set():
            rung = self._bell.rung
            if self._nudged.is_set():
                self._nudged.clear()
                look_at = 0.0
            is_short = not self._works if is_batch else self._has_more and len(self._works) < MAX_AT_HAND // 2
            if time.monotonic() >= look_at or is_short:
                began = time.monotonic()
                found = await self._look()
                look_at = time.monotonic() + POLL_SECONDS
                # However often the bell rings, looking takes a small part of the time.
                again_at = time.monotonic() + (time.monotonic() - began) * LOOK_SHARE
                if is_batch and not found and not self._works:
                    return
            self._start()
            woken = await self._wait(rung, look_at, watches_bell=not is_batch and look_at != again_at)
            if woken:
                look_at = again_at

    async def _look(self) -> bool:
        """Finds work; returns whether there was any."""
        found = await self._find()
        self._has_more = False
        for key, last_seq in interleaved(found):
            work = self._works.get(key)
            if work is not None:
                work.aim(last_seq)
            elif len(self._works) < MAX_AT_HAND:
                self._works[key] = self._make(key)
                self._ready_at[key] = 0.0
            else:
                self._has_more = True
        return bool(found)

    def _start(self) -> None:
        now = time.monotonic()
        if now < self._handling.rests_until:
            return
        at_work = set(self._tasks.values())
        busy = Counter(region_code for region_code, _ in at_work)
        self._slots.wait(key for key in self._works if key not in at_work and self._ready_at[key] <= now)
        while (key := self._slots.take(busy, self._regions)) is not None:
            busy[key[0]] += 1
            self._tasks[asyncio.create_task(self._works[key].go(), name=f"job-{self._job.name}")] = key

    async def _wait(self, rung: asyncio.Event, look_at: float, *, watches_bell: bool) -> bool:
        """Waits for whatever comes first; returns whether it was the bell."""
        now = time.monotonic()
        at_work = set(self._tasks.values())
        waits = [self._ready_at[key] for key in self._works if key not in at_work and self._ready_at[key] > now]
        waits.append(look_at if watches_bell or self._works else now)
        if self._handling.rests_until > now:
            waits = [max(self._handling.rests_until, min(waits))]
        timeout = max(0.0, min(waits) - now)
        events = [asyncio.ensure_future(it.wait()) for it in (self._handling.context.stopping, self._nudged)]
        if watches_bell:
            events.append(asyncio.ensure_future(rung.wait()))
        try:
            done, _ = await asyncio.wait([*events, *self._tasks], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()
        self._settle(task for task in list(self._tasks) if task.done())
        return watches_bell and events[-1] in done

    def _settle(self, tasks: Iterable[asyncio.Task[float | None]]) -> None:
        for task in list(tasks):
            key = self._tasks.pop(task)
            wait = None if task.cancelled() else task.result()
            if wait is None:
                del self._works[key], self._ready_at[key]
            else:
                self._ready_at[key] = time.monotonic() + wait

    async def _drain(self, seconds: float) -> None:
        """Lets batches at work finish; those that do not in time are cut short when the run is closed."""
        if self._tasks and not self._cancelled:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
            # Nobody asks any more how they end.
            task.add_done_callback(_forget)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=END_SECONDS)
            if late:
                # Nothing that they do is committed: their claims go to whoever takes the shards next.
                log.warning("handlers go on though they were cut short", job=self._job.name, batches=len(late))
        await asyncio.gather(*(work.close() for work in self._works.values()), return_exceptions=True)


def _forget(task: asyncio.Task[float | None]) -> None:
    if not task.cancelled():
        task.exception()


def interleaved(found: Iterable[tuple[ShardKey, int]]) -> list[tuple[ShardKey, int]]:
    """First one shard of each RegionCode, then the second of each, and so on: whoever has many comes no earlier."""
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, ShardKey, int]] = []
    for key, last_seq in found:
        ranked.append((seen[key[0]], key, last_seq))
        seen[key[0]] += 1
    ranked.sort()
    return [(key, last_seq) for _, key, last_seq in ranked]
