"""Where operations wait for a newer routing table: bounded in number and in time.

An operation comes here when its shard is on the move or has no open owner yet. It goes on as soon as there is a newer
table than the one that it was judged by: one that has come meanwhile is looked at at once. What a database or a peer
has sent back, although the table says that they serve, is tried again after a pause of a few milliseconds that grows:
they may know less than this gateway, or a move was called off. Nothing waits beyond its deadline; one operation too
many is refused at once.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from gateway import metrics
from policy.errors import ShardUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.records import GatewayRecord
    from policy.table import RoutingTable

FIRST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.25
"""Seconds between two tries of what should be served by now: longer each time that no newer table has come."""

TABLE_PAUSE: Final = 1.0
"""Seconds between two looks at what only a newer table can let go on: the law may have become too old meanwhile."""

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


class Held(NamedTuple):
    """Operations of one call that must be judged again."""

    indices: list[int]
    store_revision: int
    """Of the table that they were judged by."""
    needs_table: bool
    """Whether nothing but a newer table lets any of them go on."""


class Wait:
    """How long some operations may still be held, and for how long next."""

    __slots__ = ("_pause", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        """On the loop's clock."""
        self._pause = FIRST_PAUSE

    async def by(self, follower: FollowerLike, held: Held) -> None:
        """Waits until it is worth looking again."""
        pause = TABLE_PAUSE if held.needs_table else self._pause
        until = min(self.until, asyncio.get_running_loop().time() + pause)
        if not await follower.wait_beyond(held.store_revision, until):
            self._pause = min(LONGEST_PAUSE, self._pause * 2)


class HoldingArea:
    """Everything that waits in one gateway."""

    def __init__(self, follower: FollowerLike, max_held: int, hold_timeout: timedelta) -> None:
        self._follower = follower
        self._max_held = max_held
        self._timeout = hold_timeout.total_seconds()
        self._held = 0

    def until(self, deadline: float) -> float:
        """Until when a call may be held in all, counted from now; on the loop's clock."""
        return min(deadline, asyncio.get_running_loop().time() + self._timeout)

    async def wait(self, held: Held, wait: Wait) -> ShardUnavailable | None:
        """Holds operations until it is worth looking again.

        Returns:
            None then; the error that ends them when they were held too long, or when too many are held.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        operations = len(held.indices)
        if start >= wait.until:
            return ShardUnavailable("the shard is on the move, and the wait for it was too long", RETRY_AFTER)
        if self._held + operations > self._max_held:
            return ShardUnavailable("the shard is on the move, and too many operations wait already", RETRY_AFTER)
        self._count(operations)
        try:
            await wait.by(self._follower, held)
        finally:
            self._count(-operations)
            metrics.HOLD_SECONDS.observe(loop.time() - start)
        return None

    def _count(self, operations: int) -> None:
        self._held += operations
        metrics.HOLDING.set(self._held)
