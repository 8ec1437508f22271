"""Which shard is next when a runner has a slot free, so that no RegionCode holds up another.

A job in a runner handles at most `concurrency` batches at once. A RegionCode whose batches are slow, or all time out,
would soon sit in every slot; so while others have work it gets at most half of them, and while others of the runner's
share might have work at any moment it leaves one. Slots go to the RegionCode with the fewest batches at work, then to
the one that has waited longest; its shards take turns.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    ShardKey = tuple[str, int]


class Slots:
    """Gives the slots of one job in one runner to shards that wait."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._queues: dict[str, deque[ShardKey]] = {}
        """Shards that wait, by RegionCode; no queue is empty."""
        self._turns: dict[str, int] = {}
        """When each RegionCode was last served; bounded by the RegionCodes of the policy."""
        self._turn = 0

    def choose(
        self, waiting: Iterable[ShardKey], busy: Mapping[str, int], regions: Collection[str] = ()
    ) -> ShardKey | None:
        """The next shard of those that wait, or None when none may start now. Costs time for each that waits."""
        self.wait(waiting)
        return self.take(busy, regions)

    def wait(self, waiting: Iterable[ShardKey]) -> None:
        """Says which shards wait, instead of what was said before; those that have waited on keep their place."""
        wanted = dict.fromkeys(waiting)
        queues: dict[str, deque[ShardKey]] = {}
        still = (shard for queue in self._queues.values() for shard in queue if shard in wanted)
        for shard in dict.fromkeys((*still, *wanted)):
            queues.setdefault(shard[0], deque()).append(shard)
        self._queues = queues

    def take(self, busy: Mapping[str, int], regions: Collection[str] = ()) -> ShardKey | None:
        """Takes the next shard out of those that wait, or None when none may start now.

        Costs time for each RegionCode, not for each shard.

        Args:
            busy: How many batches are at work now, by RegionCode.
            regions: The RegionCodes of the runner's share: work may come up in any of them.
        """
        if sum(busy.values()) >= self.concurrency:
            return None
        most = self._most(busy, regions)
        allowed = [region for region in self._queues if busy.get(region, 0) < most]
        if not allowed:
            return None
        region = min(allowed, key=lambda region: (busy.get(region, 0), self._turns.get(region, 0)))
        self._turn += 1
        self._turns[region] = self._turn
        shard = self._queues[region].popleft()
        if not self._queues[region]:
            del self._queues[region]
        return shard

    def _most(self, busy: Mapping[str, int], regions: Collection[str]) -> int:
        """Slots that one RegionCode may have."""
        at_work = {region for region, batches in busy.items() if batches}
        in_sight = at_work | self._queues.keys()
        if len(in_sight) > 1:
            return max(1, self.concurrency // 2)
        return max(1, self.concurrency - 1) if in_sight < {*regions, *in_sight} else self.concurrency
