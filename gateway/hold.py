"""Where operations wait for a newer routing table: bounded in number and in time.

An operation comes here when its shard is on the move or has no open owner yet. It goes on when the table changes, or
after a pause that grows, since a move that was called off may change nothing in the table. It never waits beyond its
deadline; one too many is refused at once.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from gateway import metrics
from policy.errors import ShardUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.records import GatewayRecord
    from policy.table import RoutingTable

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
RETRY_AFTER: Final = timedelta(milliseconds=500)


class FollowerLike(Protocol):
    """What the engine needs to know of the policy store."""

    @property
    def table(self) -> RoutingTable | None:
        """The newest table; None when no policy has been applied or none has been seen yet."""
        ...

    @property
    def gateways(self) -> Mapping[str, tuple[GatewayRecord, ...]]:
        """IDC -> its live gateways."""
        ...

    @property
    def is_fresh(self) -> bool:
        """Whether no policy newer than the table's can be effective; asked anew each time."""
        ...

    async def wait_beyond(self, store_revision: int, deadline: float) -> bool:
        """Waits for a table newer than that; False when the loop's clock has reached `deadline` first."""
        ...


class Wait:
    """The waits of one call: how long it may still be held, and for how long next."""

    __slots__ = ("_pause", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        """On the loop's clock."""
        self._pause = FIRST_PAUSE

    def next_pause(self) -> float:
        """How long to wait at most before looking again."""
        pause, self._pause = self._pause, min(LONGEST_PAUSE, self._pause * 2)
        return pause


class HoldingArea:
    """Everything that waits in one gateway."""

    def __init__(self, follower: FollowerLike, max_held: int, hold_timeout: timedelta) -> None:
        self._follower = follower
        self._max_held = max_held
        self._timeout = hold_timeout.total_seconds()
        self._held = 0

    def begin(self, deadline: float) -> Wait:
        """The time that a call may be held in all, counted from now."""
        return Wait(min(deadline, asyncio.get_running_loop().time() + self._timeout))

    async def wait(self, operations: int, store_revision: int, wait: Wait) -> ShardUnavailable | None:
        """Holds a number of operations until it is worth looking again.

        Returns:
            None then; the error that ends them when they were held too long, or when too many are held.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        if start >= wait.until:
            return ShardUnavailable("the shard is on the move, and the wait for it was too long", RETRY_AFTER)
        if self._held + operations > self._max_held:
            return ShardUnavailable("the shard is on the move, and too many operations wait already", RETRY_AFTER)
        self._count(operations)
        try:
            await self._follower.wait_beyond(store_revision, min(wait.until, start + wait.next_pause()))
        finally:
            self._count(-operations)
            metrics.HOLD_SECONDS.observe(loop.time() - start)
        return None

    def _count(self, operations: int) -> None:
        self._held += operations
        metrics.HOLDING.set(self._held)
