"""The scan of one shard: claim, read a page, handle it, and again, until what was there at the beginning is done.

Claim (where to go on), read (which rows) and commit (how far) see one shard at one epoch: the claim's. The next page is
read while the one before is handled. A page is read outside any transaction, since sequence order is commit order.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from policy.errors import ClaimLost, DatabaseUnavailable, RegiongateError, Unavailable
from regionjobs.batch import Content
from regionjobs.definition import Kind
from regionjobs.failing import Verdict
from regionjobs.judging import text_of
from regionjobs.work import Passage
from rowstore.jobs import offsets
from rowstore.jobs.model import Advance, SetAside
from rowstore.model import ShardEpoch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import pyarrow as pa

    from regionjobs.connections import Effects
    from regionjobs.failing import Part
    from regionjobs.rows import JobRow, Page
    from regionjobs.scan import ShardScanner
    from regionjobs.work import Handling
    from regionjobs.workbench import Finish
    from rowstore.jobs.model import Claim, PendingShard

log = structlog.get_logger("regionjobs")

SLICE_SECONDS: Final = 1.0
"""How long one shard may keep a slot while others wait."""
CLAIM_TRIES: Final = 3
"""Pauses before a shard that cannot be taken is left alone until somebody looks for work again."""
MAX_REPLAYS: Final = 100
"""Rows that were set aside and are tried again in one go."""


class PageContent(Content):
    """Rows of one shard."""

    def __init__(self, page: Page, *, is_replay: bool = False) -> None:
        self._page = page
        self.is_replay = is_replay
        self.region_code = page.region_code
        self.shard = page.shard

    @property
    def count(self) -> int:
        """How many."""
        return self._page.count

    @property
    def shards(self) -> tuple[tuple[str, int], ...]:
        """The one."""
        return ((self.region_code, self.shard),)

    @property
    def rows(self) -> Sequence[JobRow]:
        """The rows."""
        return self._page.rows

    @property
    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownParameterType]: pyarrow tells no types
        """The rows as an Arrow table."""
        return self._page.table

    def identify(self, row: Any) -> tuple[str, int, int]:  # noqa: ANN401 (a JobRow, or a sequence with Arrow)
        """A row, or with Arrow tables its sequence."""
        return self.region_code, self.shard, row if isinstance(row, int) else row.version


class PageLot:
    """A page on its way through the handler; see `regionjobs.work.Lot`."""

    is_replay = False

    def __init__(self, held: Claim, page: Page, *, after: int, ends: datetime | None) -> None:
        self.lead = held
        self.page = page
        self._after = after
        """Where the page was read from."""
        self._ends = ends
        """The firing whose pass ends with this page."""

    @property
    def count(self) -> int:
        """Rows in it."""
        return self.page.count

    def content(self, part: Part) -> Content:
        """See `Lot`."""
        return PageContent(self.page.part(part.start, part.stop))

    def steps(self, part: Part) -> Sequence[tuple[Claim, Advance]]:
        """See `Lot`."""
        rows = self.page.part(part.start, part.stop)
        is_last = part.stop == self.page.count
        advance = Advance(
            seq=rows.through_seq,
            rows=rows.count,
            row_time=rows.last_time,
            pass_time=self._ends if is_last else None,
            after=self.page.seq_at(part.start - 1) if part.start else self._after,
        )
        return ((self.lead, advance),)

    def finish(self, part: Part) -> Finish | None:  # noqa: ARG002 (nothing else belongs to a page)
        """See `Lot`."""
        return None

    def set_aside(self, part: Part, attempts: int, error: BaseException) -> SetAside:
        """See `Lot`."""
        page, held = self.page, self.lead
        return SetAside(
            held.region_code,
            held.shard,
            page.seq_at(part.start),
            str(page.key_at(part.start)),
            attempts,
            type(error).__name__,
            text_of(error),
        )

    def culprit(self, part: Part) -> Claim:  # noqa: ARG002 (there is only one shard)
        """See `Lot`."""
        return self.lead


class ReplayLot(PageLot):
    """Rows that were set aside: their places are given up with their success, and the offset stays."""

    is_replay = True

    def __init__(self, held: Claim, page: Page, job: str, asides: Sequence[SetAside], seq: int) -> None:
        # What has failed is the batch at hand, which comes after this one.
        super().__init__(held._replace(failures=0), page, after=seq, ends=None)
        self._job = job
        self._by_seq = {row.seq: row for row in asides}
        self._seq = seq

    def content(self, part: Part) -> Content:
        """See `Lot`."""
        return PageContent(self.page.part(part.start, part.stop), is_replay=True)

    def steps(self, part: Part) -> Sequence[tuple[Claim, Advance]]:
        """The offset stays where it is; the commit still proves the claim."""
        return ((self.lead, Advance(seq=self._seq, rows=part.stop - part.start, after=self._seq)),)

    def finish(self, part: Part) -> Finish | None:
        """Forgets what is done."""
        done = [self._by_seq[self.page.seq_at(index)] for index in range(part.start, part.stop)]

        async def forget(effects: Effects) -> None:
            await offsets.forget_set_aside(effects.fetch, self._job, done)

        return forget

    def set_aside(self, part: Part, attempts: int, error: BaseException) -> SetAside:
        """Again, where it was."""
        known = self._by_seq[self.page.seq_at(part.start)]
        return replace(known, attempts=attempts, error_class=type(error).__name__, error=text_of(error))


class ShardPass:
    """One shard's scan in a run; resumable."""

    def __init__(self, handling: Handling, scanner: ShardScanner, shard: PendingShard, runner: str) -> None:
        self._handling = handling
        self._scanner = scanner
        self._job = handling.bench.job
        self._runner = runner
        self.shard = ShardEpoch(shard.region_code, shard.shard, shard.epoch)
        self._goal = shard.last_seq
        """Up to here everything is to be handled in this pass."""
        self._held: Claim | None = None
        self._seq = 0
        self._limit = self._job.batch_size
        """Rows of the next page; fewer after one that could not be read."""
        self._may_have_replays = False
        self._passage: Passage | None = None
        self._lot: PageLot | None = None
        self._next_page: asyncio.Task[Page] | None = None
        self._troubles = 0
        """Times in a row that something stood in the way that is not the handler's fault."""

    @property
    def key(self) -> tuple[str, int]:
        """RegionCode and number of the shard."""
        return self.shard.region_code, self.shard.shard

    def aim(self, last_seq: int) -> None:
        """There is more to do than was known."""
        self._goal = max(self._goal, last_seq)

    async def go(self) -> float | None:
        """Goes on; returns None when the pass is over, or after how many seconds it wants to go on."""
        until = time.monotonic() + SLICE_SECONDS
        try:
            while time.monotonic() < until and not self._handling.context.stopping.is_set():
                if self._held is None and not await self._claim():
                    # Its offset may be held by a commit that is on its way, though whoever made it is gone.
                    return self._drop() if self._troubles < CLAIM_TRIES else None
                if self._passage is None and self._may_have_replays:
                    await self._take_replays()
                if self._passage is None and not await self._read():
                    return None
                wait = await self._handle()
                if wait is None or wait > 0:
                    return wait
        except RegiongateError as error:
            # Another has the shard, or the database does not answer: read again, from where it says.
            level = log.debug if isinstance(error, ClaimLost | Unavailable) else log.error
            level(
                "shard not scanned", job=self._job.name, region_code=self.shard[0], shard=self.shard[1], why=str(error)
            )
            return self._drop()
        return 0.0

    async def close(self) -> None:
        """Ends what has been begun ahead."""
        task, self._next_page = self._next_page, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _claim(self) -> bool:
        """Takes the shard; False when this IDC does not serve it at the run's epoch."""
        claims = await offsets.claim(self._handling.fetch, self._job.name, self._runner, [self.shard])
        if not claims:
            return False
        self._held = claims[0]
        self._seq = self._held.seq
        self._may_have_replays = True
        return True

    async def _take_replays(self) -> None:
        """Rows that somebody has ordered to be tried again come first."""
        held, job = self._held, self._job
        assert held is not None, "not claimed"  # noqa: S101 (a broken promise of `go`)
        asides = await offsets.replays(self._handling.fetch, job.name, held, min(MAX_REPLAYS, job.batch_size))
        self._may_have_replays = bool(asides)
        if not asides:
            return
        page = await self._scanner.read_again(held, [row.seq for row in asides])
        present = {page.seq_at(index) for index in range(page.count)}
        # Those have been deleted, or their newer change is handled like any other: nothing is left to be done.
        over = [row for row in asides if row.seq not in present]
        await offsets.forget_set_aside(self._handling.fetch, job.name, over)
        if page.count:
            self._lot = ReplayLot(held, page, job.name, asides, self._seq)
            self._passage = Passage(self._handling, self._lot)

    async def _read(self) -> bool:
        """Makes the next page the one at hand; False when the pass is over."""
        held = self._held
        assert held is not None, "not claimed"  # noqa: S101 (a broken promise of `go`)
        firing = self._handling.context.scheduled_time
        if firing is None and (self._job.kind is Kind.BATCH or self._seq >= self._goal):
            # A batch job without a firing was only called to try rows again.
            return False
        ahead, self._next_page = self._next_page, None
        try:
            page = await (ahead or self._scanner.read(held, self._seq, self._limit))
        except DatabaseUnavailable:
            # Perhaps the rows are so large that so many take too long: fewer will do.
            self._limit = max(1, self._limit // 2)
            raise
        self._limit = min(self._limit * 2, self._job.batch_size)
        reaches = page.through_seq
        is_end = reaches >= self._goal
        self._lot = PageLot(held, page, after=self._seq, ends=firing if is_end else None)
        self._passage = Passage(self._handling, self._lot)
        if not is_end:
            self._next_page = asyncio.create_task(self._scanner.read(held, reaches, self._limit))
        return True

    async def _handle(self) -> float | None:
        """Takes the page at hand on; 0 when the next one may come."""
        passage, lot = self._passage, self._lot
        assert passage is not None and lot is not None, "nothing at hand"  # noqa: PT018, S101 (a promise of `go`)
        verdict, wait = await passage.go()
        match verdict:
            case Verdict.AGAIN:
                return wait
            case Verdict.GIVE_UP:
                return self._drop()
            case Verdict.STOP:
                return None
            case _:
                return self._done(lot, wait)

    def _done(self, lot: PageLot, wait: float) -> float | None:
        self._passage = self._lot = None
        self._troubles = 0
        # Failures were those of the batch that is done now.
        if self._held is not None:
            self._held = self._held._replace(failures=0)
        if isinstance(lot, ReplayLot):
            return wait
        before, self._seq = self._seq, max(self._seq, lot.page.through_seq)
        # The goal may have moved on while this page was handled.
        is_over = self._seq >= self._goal or (self._seq == before and not lot.page.is_full)
        return None if is_over else wait

    def _drop(self) -> float:
        """Forgets what was known of the shard, since somebody else may know better; returns how long to wait."""
        self._troubles += 1
        self._held = self._passage = self._lot = None
        task, self._next_page = self._next_page, None
        if task is not None:
            task.cancel()
            task.add_done_callback(_ignore)
        return self._job.retry.pause(self._troubles)


def _ignore(task: asyncio.Task[Page]) -> None:
    """Nobody waits for it any more."""
    if not task.cancelled():
        task.exception()
