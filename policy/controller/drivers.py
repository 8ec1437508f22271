"""The set of running drivers, reconciled with the shards that are under way: one for each, and none for any other.

A driver ends by itself when its shard is at rest. A shard whose attempt has failed rests for a while before the next,
longer each time.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from policy.controller.drive import MoveDriver
from policy.metrics import MOVES_IN_TROUBLE, MOVES_UNDER_WAY
from policy.move import UNDER_WAY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.cluster import KnownShard
    from policy.controller.drive import DriveContext
    from policy.intent import Shard

log = structlog.get_logger(__name__)

FIRST_REST: Final = 1.0
LONGEST_REST: Final = 60.0


class Drivers:
    """The drivers of one leadership."""

    def __init__(self, context: DriveContext) -> None:
        self._context = context
        self._running: dict[Shard, tuple[MoveDriver, asyncio.Task[None]]] = {}
        self._rests: dict[Shard, tuple[float, float]] = {}
        """Until when a shard rests, and how long the next time."""
        self.ended = asyncio.Event()
        """Set when a driver has ended."""

    def reconcile(self, shards: Mapping[Shard, KnownShard]) -> None:
        """Starts what is missing."""
        for shard, (record, _) in shards.items():
            if record.attempt and record.phase in UNDER_WAY and shard not in self._running:
                driver = MoveDriver(self._context, shard)
                task = asyncio.create_task(driver.run(), name=f"move {shard[0]}/{shard[1]}")
                self._running[shard] = driver, task
                task.add_done_callback(lambda task, shard=shard: self._end(shard, task))
        MOVES_UNDER_WAY.set(len(self._running))
        MOVES_IN_TROUBLE.set(len(self.troubles))

    @property
    def troubles(self) -> dict[Shard, str]:
        """Shards whose move does not get on, and why."""
        return {shard: driver.trouble for shard, (driver, _) in self._running.items() if driver.trouble}

    @property
    def resting(self) -> frozenset[Shard]:
        """Shards that are not to be tried again yet."""
        now = time.monotonic()
        return frozenset(shard for shard, (until, _) in self._rests.items() if until > now)

    @property
    def next_wake(self) -> float | None:
        """Seconds until the next shard has rested enough; None when none rests."""
        now = time.monotonic()
        return min((until - now for until, _ in self._rests.values() if until > now), default=None)

    async def stop(self) -> None:
        """Ends all drivers; their shards stay as they are for the next leader."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _end(self, shard: Shard, task: asyncio.Task[None]) -> None:
        driver, _ = self._running.pop(shard)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a driver has failed", region_code=shard[0], shard=shard[1], exc_info=error)
            self._rest(shard)
        elif driver.was_called_off:
            self._rest(shard)
        else:
            self._rests.pop(shard, None)
        self.ended.set()

    def _rest(self, shard: Shard) -> None:
        _, pause = self._rests.get(shard, (0.0, FIRST_REST))
        self._rests[shard] = time.monotonic() + pause, min(pause * 2, LONGEST_REST)
