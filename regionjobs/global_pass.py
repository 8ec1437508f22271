"""The scan of one source as a whole: from the smallest offset of the shards held, filtered by who owns what.

The three steps see one set of shards, the run's: the start is the smallest of their offsets, a row counts if its shard
is among them and its own offset has not passed it, and the commit saves an offset for each of them, or nothing at all
(requirements U4, U9, U10). So a shard that comes from an IDC that was further behind takes the scan back to where that
one stood, and rows that the other shards have passed are not handled twice.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog

from policy.errors import ClaimLost, RegiongateError, Unavailable
from policy.sharding import shard_of
from regionjobs import metrics
from regionjobs.batch import Content
from regionjobs.failing import Verdict
from regionjobs.shard_pass import SLICE_SECONDS
from regionjobs.work import Passage
from rowstore.jobs import offsets
from rowstore.jobs.model import Advance, SetAside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from datetime import datetime

    from policy.compile import Policy
    from regionjobs.failing import Part
    from regionjobs.source import SourceRow
    from regionjobs.work import Handling
    from regionjobs.workbench import Finish
    from rowstore.jobs.model import Claim
    from rowstore.model import ShardEpoch

    ShardKey = tuple[str, int]

log = structlog.get_logger("regionjobs")


class OwnedRows(Content):
    """Rows of several shards."""

    def __init__(self, rows: Sequence[tuple[ShardKey, SourceRow]], shards: tuple[ShardKey, ...]) -> None:
        self._rows = [row for _, row in rows]
        self._shard_at = {row.position: shard for shard, row in rows}
        self._shards = shards

    @property
    def count(self) -> int:
        """How many."""
        return len(self._rows)

    @property
    def shards(self) -> tuple[ShardKey, ...]:
        """All that the run holds."""
        return self._shards

    @property
    def rows(self) -> Sequence[SourceRow]:
        """The rows."""
        return self._rows

    def identify(self, row: Any) -> tuple[str, int, int]:  # noqa: ANN401 (a SourceRow)
        """Its shard and position."""
        return (*self._shard_at[row.position], row.position)


class SourceLot:
    """A batch of a source on its way through the handler; see `regionjobs.work.Lot`."""

    def __init__(
        self,
        held: Sequence[Claim],
        offsets_now: dict[ShardKey, int],
        rows: Sequence[tuple[ShardKey, SourceRow]],
        *,
        reaches: int,
        ends: datetime | None,
    ) -> None:
        self.held = held
        self.lead = held[0]
        self.reaches = reaches
        self._offsets = offsets_now
        self._rows = rows
        self._ends = ends

    @property
    def count(self) -> int:
        """Rows in it."""
        return len(self._rows)

    def content(self, part: Part) -> Content:
        """See `Lot`."""
        return OwnedRows(self._rows[part.start : part.stop], tuple((it.region_code, it.shard) for it in self.held))

    def steps(self, part: Part) -> Sequence[tuple[Claim, Advance]]:
        """One for each shard held, also where it stays: all of them must still be ours."""
        is_last = part.stop == self.count
        rows = self._rows[part.start : part.stop]
        position = self.reaches if is_last else rows[-1][1].position
        before = self._rows[part.start - 1][1].position if part.start else 0
        counts: dict[ShardKey, int] = {}
        for shard, _ in rows:
            counts[shard] = counts.get(shard, 0) + 1
        ends = self._ends if is_last else None
        return [
            (
                held,
                Advance(
                    seq=max(position, self._offsets[held.region_code, held.shard]),
                    rows=counts.get((held.region_code, held.shard), 0),
                    pass_time=ends,
                    after=max(before, self._offsets[held.region_code, held.shard]),
                ),
            )
            for held in self.held
        ]

    def finish(self, part: Part) -> Finish | None:  # noqa: ARG002 (nothing else belongs to it)
        """See `Lot`."""
        return None

    def set_aside(self, part: Part, attempts: int, error: BaseException) -> SetAside:
        """See `Lot`."""
        (region_code, shard), row = self._rows[part.start]
        return SetAside(region_code, shard, row.position, str(row.key), attempts, type(error).__name__, str(error))


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

    async def _read(self) -> bool:
        """Makes the next rows the batch at hand; False when there is nothing to be saved either."""
        rows = await self._ask()
        is_end = len(rows) < self._job.batch_size
        firing = self._handling.context.scheduled_time
        if not rows and firing is None:
            return False
        reaches = rows[-1].position if rows else self._position
        owned = [(shard, row) for row in rows if (shard := self._owner(row)) is not None]
        self._lot = SourceLot(self._held, dict(self._offsets), owned, reaches=reaches, ends=firing if is_end else None)
        self._passage = Passage(self._handling, self._lot)
        self._is_end = is_end
        return True

    async def _ask(self) -> list[SourceRow]:
        """The next rows. A source that fails, or says nothing for as long as a batch may take, is asked again."""
        try:
            async with asyncio.timeout(self._job.timeout.total_seconds()):
                return await self._select(self._position, self._job.batch_size)
        except RegiongateError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a source raises)
            # Its text may quote a row (law L1).
            failure = Unavailable(f"the source has failed ({type(error).__name__})")
        log.warning("the source has failed", job=self._job.name, why=str(failure))
        raise failure

    def _owner(self, row: SourceRow) -> ShardKey | None:
        """The shard of a row that is to be handled in this run; None for any other."""
        shards = self._counts.get(row.region_code) if row.region_code else None
        if shards is None or row.region_code is None:
            # Nobody owns it. Should a rule cover its RegionCode one day, the new shards' offsets begin before it.
            metrics.UNOWNED.labels(self._job.name).inc()
            return None
        shard = (row.region_code, shard_of(row.key, shards))
        passed = self._offsets.get(shard)
        return shard if passed is not None and passed < row.position else None

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
                return None
            case _:
                return self._done(lot, wait)

    def _done(self, lot: SourceLot, wait: float) -> float | None:
        self._passage = self._lot = None
        self._troubles = 0
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
