"""The scan of one source as a whole: from the smallest offset of the shards held, filtered by who owns what.

The three steps see one set of shards, the run's: the start is the smallest of their offsets, a row counts if its shard
is among them and its own offset has not passed it, and the commit saves an offset for each of them, or nothing at all
(requirements U4, U9, U10). So a shard that comes from an IDC that was further behind takes the scan back to where that
one stood, and rows that the other shards have passed are not handled twice.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from policy.errors import ClaimLost, RegiongateError, Unavailable
from policy.sharding import shard_of
from regionjobs import metrics
from regionjobs.definition import Kind
from regionjobs.failing import Verdict
from regionjobs.shard_pass import MAX_REPLAYS, SLICE_SECONDS
from regionjobs.source_lots import ReplayedLot, SourceLot
from regionjobs.work import Passage
from rowstore.jobs import offsets

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from policy.compile import Policy
    from regionjobs.source import SourceRow
    from regionjobs.work import Handling
    from rowstore.jobs.model import Claim, SetAside
    from rowstore.model import ShardEpoch

    ShardKey = tuple[str, int]

log = structlog.get_logger("regionjobs")


class GlobalPass:
    """One scan of a source in a run; resumable."""

    key = ("", -1)

    def __init__(
        self,
        handling: Handling,
        select: Callable[[int, int], Awaitable[list[SourceRow]]],
        shards: Collection[ShardEpoch],
        policy: Policy,
        runner: str,
    ) -> None:
        """`policy` is the run's: rows are filtered by the very table that its shards were taken from."""
        self._handling = handling
        self._select = select
        self._shards = sorted(shards)
        self._counts = {code: residency.shards for code, residency in policy.regions.items()}
        self._runner = runner
        self._job = handling.bench.job
        self._held: list[Claim] = []
        self._offsets: dict[ShardKey, int] = {}
        self._position = 0
        self._may_have_replays = False
        self._passage: Passage | None = None
        self._lot: SourceLot | None = None
        self._troubles = 0
        self._is_end = False

    def aim(self, last_seq: int) -> None:
        """A source has no goal that is known beforehand."""

    async def go(self) -> float | None:
        """Goes on; returns None when the source has no more rows, or after how many seconds it wants to go on."""
        until = time.monotonic() + SLICE_SECONDS
        try:
            while time.monotonic() < until and not self._handling.context.stopping.is_set():
                if not self._held:
                    await self._claim()
                if self._passage is None and self._may_have_replays:
                    await self._take_replays()
                if self._passage is None and not await self._read():
                    return None
                wait = await self._handle()
                if wait is None or wait > 0:
                    return wait
        except RegiongateError as error:
            level = log.debug if isinstance(error, ClaimLost | Unavailable) else log.error
            level("source not scanned", job=self._job.name, why=str(error))
            return self._drop()
        return 0.0

    async def close(self) -> None:
        """Nothing is begun ahead."""

    async def _claim(self) -> None:
        """Takes all shards of the run, or none: their offsets are one find."""
        held = await offsets.claim(self._handling.fetch, self._job.name, self._runner, self._shards)
        if len(held) != len(self._shards):
            raise ClaimLost(f"{len(self._shards) - len(held)} of {len(self._shards)} shards are not served here")
        self._held = held
        self._offsets = {(it.region_code, it.shard): it.seq for it in held}
        self._position = min(self._offsets.values())
        self._may_have_replays = True

    async def _take_replays(self) -> None:
        """Rows that somebody has ordered to be tried again come first, each looked up by its position."""
        fetch, job = self._handling.fetch, self._job
        asides = await offsets.replays_among(fetch, job.name, self._held, min(MAX_REPLAYS, job.batch_size))
        self._may_have_replays = bool(asides)
        found: list[tuple[SetAside, SourceRow]] = []
        over: list[SetAside] = []
        for aside in asides:
            rows = await self._ask(aside.seq - 1, 1)
            if rows and rows[0].position == aside.seq and self._shard_of(rows[0]) == (aside.region_code, aside.shard):
                found.append((aside, rows[0]))
            else:
                over.append(aside)
        # Those are gone, or at another position by now: nothing is left to be done.
        await offsets.forget_set_aside(fetch, job.name, over)
        if found:
            found.sort(key=lambda it: it[1].position)
            self._lot = ReplayedLot(self._held, dict(self._offsets), found, job.name)
            self._passage = Passage(self._handling, self._lot)

    async def _read(self) -> bool:
        """Makes the next rows the batch at hand; False when there is nothing to be saved either."""
        firing = self._handling.context.scheduled_time
        if firing is None and self._job.kind is Kind.BATCH:
            # Without a firing it was only called to try rows again.
            return False
        rows = await self._ask(self._position, self._job.batch_size)
        is_end = len(rows) < self._job.batch_size
        if not rows and firing is None:
            return False
        reaches = rows[-1].position if rows else self._position
        owned = [(shard, row) for row in rows if (shard := self._owner(row)) is not None]
        self._lot = SourceLot(self._held, dict(self._offsets), owned, reaches=reaches, ends=firing if is_end else None)
        self._passage = Passage(self._handling, self._lot)
        self._is_end = is_end
        return True

    async def _ask(self, after: int, limit: int) -> list[SourceRow]:
        """Rows above a position. A source that fails, or is silent for as long as a batch may take, is asked again."""
        try:
            async with asyncio.timeout(self._job.timeout.total_seconds()):
                return await self._select(after, limit)
        except RegiongateError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a source raises)
            # Its text may quote a row (law L1).
            failure = Unavailable(f"the source has failed ({type(error).__name__})")
        log.warning("the source has failed", job=self._job.name, why=str(failure))
        raise failure

    def _owner(self, row: SourceRow) -> ShardKey | None:
        """The shard of a row that is to be handled in this run; None for any other."""
        shard = self._shard_of(row)
        if shard is None:
            # Nobody owns it. Should a rule cover its RegionCode one day, the new shards' offsets begin before it.
            metrics.UNOWNED.labels(self._job.name).inc()
            return None
        passed = self._offsets.get(shard)
        return shard if passed is not None and passed < row.position else None

    def _shard_of(self, row: SourceRow) -> ShardKey | None:
        shards = self._counts.get(row.region_code) if row.region_code else None
        return None if shards is None or row.region_code is None else (row.region_code, shard_of(row.key, shards))

    async def _handle(self) -> float | None:
        passage, lot = self._passage, self._lot
        assert passage is not None and lot is not None, "nothing at hand"  # noqa: PT018, S101 (a promise of `go`)
        verdict, wait = await passage.go()
        match verdict:
            case Verdict.AGAIN:
                return wait
            case Verdict.GIVE_UP:
                return self._drop()
            case Verdict.STOP:
                # In the shard of that row; the run looks again, and goes on in the others.
                return None
            case _:
                return self._done(lot, wait)

    def _done(self, lot: SourceLot, wait: float) -> float | None:
        self._passage = self._lot = None
        self._troubles = 0
        if lot.is_replay:
            return wait
        self._held = [held._replace(failures=0) for held in self._held]
        self._position = max(self._position, lot.reaches)
        for shard, offset in self._offsets.items():
            self._offsets[shard] = max(offset, lot.reaches)
        return None if self._is_end else wait

    def _drop(self) -> float:
        """Forgets what was known of the shards; returns how long to wait."""
        self._troubles += 1
        self._held, self._passage, self._lot = [], None, None
        return self._job.retry.pause(self._troubles)
