"""What all jobs of a runner share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.follower import Follower
    from regionjobs.bell import Bell
    from regionjobs.connections import EffectConnections
    from regionjobs.membership import Membership
    from rowstore.database import Database
    from runtime.telemetry.tracing import Tracing


@dataclass(frozen=True, slots=True)
class RunnerParts:
    """The parts of one runner that its jobs use."""

    idc: str
    follower: Follower
    membership: Membership
    database: Database
    """For claims, pages and everything that is not a batch's own transaction."""
    connections: EffectConnections
    bell: Bell
    tracing: Tracing
    client: Callable[[], Any]
    """The SDK's client, or None while no gateway has answered."""
    drain: timedelta = timedelta(seconds=10)
    """How long batches at work may take to finish once their run is to end."""
