"""Batches of a source: what a global scan hands over, and what its commits say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from regionjobs.batch import Content
from regionjobs.judging import text_of, told
from rowstore.jobs import offsets
from rowstore.jobs.model import Advance, SetAside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from regionjobs.connections import Effects
    from regionjobs.failing import Part
    from regionjobs.source import SourceRow
    from regionjobs.workbench import Finish
    from rowstore.jobs.model import Claim

    ShardKey = tuple[str, int]


class OwnedRows(Content):
    """Rows of several shards."""

    def __init__(
        self, rows: Sequence[tuple[ShardKey, SourceRow]], shards: tuple[ShardKey, ...], *, is_replay: bool = False
    ) -> None:
        self._rows = [row for _, row in rows]
        self._shard_at = {row.position: shard for shard, row in rows}
        self._shards = shards
        self.is_replay = is_replay

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

    is_replay = False

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
        key = told(str(row.key))
        return SetAside(region_code, shard, row.position, key, attempts, type(error).__name__, text_of(error))

    def culprit(self, part: Part) -> Claim:
        """See `Lot`."""
        shard = self._rows[part.start][0]
        return next(held for held in self.held if held[:2] == shard)


class ReplayedLot(SourceLot):
    """Rows that were set aside: their places are given up with their success, and all offsets stay."""

    is_replay = True

    def __init__(
        self,
        held: Sequence[Claim],
        offsets_now: dict[ShardKey, int],
        found: Sequence[tuple[SetAside, SourceRow]],
        job: str,
    ) -> None:
        self._asides = [aside for aside, _ in found]
        self._job = job
        shards = {(aside.region_code, aside.shard) for aside in self._asides}
        # What has failed is the batch at hand, which comes after this one.
        involved = [it._replace(failures=0) for it in held if it[:2] in shards]
        rows = [((aside.region_code, aside.shard), row) for aside, row in found]
        super().__init__(involved, offsets_now, rows, reaches=0, ends=None)

    def content(self, part: Part) -> Content:
        """See `Lot`."""
        shards = tuple((held.region_code, held.shard) for held, _ in self.steps(part))
        return OwnedRows(self._rows[part.start : part.stop], shards, is_replay=True)

    def steps(self, part: Part) -> Sequence[tuple[Claim, Advance]]:
        """The offsets stay where they are; the commit still proves the claims."""
        counts = Counter(shard for shard, _ in self._rows[part.start : part.stop])
        stays = {held: self._offsets[held.region_code, held.shard] for held in self.held if held[:2] in counts}
        return [(held, Advance(seq=seq, rows=counts[held[:2]], after=seq)) for held, seq in stays.items()]

    def finish(self, part: Part) -> Finish | None:
        """Forgets what is done."""
        done = self._asides[part.start : part.stop]

        async def forget(effects: Effects) -> None:
            await offsets.forget_set_aside(effects.fetch, self._job, done)

        return forget

    def set_aside(self, part: Part, attempts: int, error: BaseException) -> SetAside:
        """Again, where it was."""
        known = self._asides[part.start]
        return replace(known, attempts=attempts, error_class=type(error).__name__, error=text_of(error))
