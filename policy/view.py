"""What the request path knows of the law: the follower's table and the presence's freshness, in one object."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from policy.follower import Follower
    from policy.presence import Presence
    from policy.records import GatewayRecord
    from policy.table import RoutingTable


class PolicyView:
    """Reads through to both, so each look is at the present state."""

    __slots__ = ("_follower", "_presence")

    def __init__(self, follower: Follower, presence: Presence) -> None:
        self._follower = follower
        self._presence = presence

    @property
    def table(self) -> RoutingTable | None:
        """The newest routing table; None before the first policy."""
        return self._follower.table

    @property
    def gateways(self) -> Mapping[str, tuple[GatewayRecord, ...]]:
        """IDC -> its live gateways."""
        return self._follower.gateways

    @property
    def is_fresh(self) -> bool:
        """Whether border crossings may be judged right now (law L6)."""
        return self._presence.is_fresh

    async def wait_beyond(self, store_revision: int, deadline: float) -> bool:
        """Waits for a table newer than that; False when the loop's clock reaches `deadline` first."""
        return await self._follower.wait_beyond(store_revision, deadline)

    def subscribe(self) -> AsyncIterator[RoutingTable | None]:
        """The table now, then again after each change of table or gateways; a slow reader gets the newest only."""
        return self._follower.subscribe()
