"""How much may be in flight, until when each call may take, and whether this gateway takes calls at all.

gRPC's own limit on queued calls drops them at random and without a reason; so it is set out of reach
(gateway.server) and the bound is here: too much is refused at once with LIMIT_REACHED, before it has cost anything.

A gateway takes no call before it has registered (law L6), and none after it was told to stop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from gateway.call_metrics import OPERATIONS_IN_FLIGHT, REFUSED
from policy.errors import LimitReached, RegiongateError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio

    from gateway.settings import GatewaySettings


class Admission:
    """The bounds of one gateway, over both its listeners."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._max_operations = settings.max_operations
        self._max_streams = settings.max_streams
        self._default_timeout = settings.default_timeout.total_seconds()
        self._max_timeout = settings.max_timeout.total_seconds()
        self._refusal: Callable[[], RegiongateError] | None = lambda: Unavailable("this gateway is starting")
        self._now = asyncio.get_running_loop().time
        self.operations = 0
        """In flight."""
        self.streams = 0
        """Open."""
        self.draining = asyncio.Event()
        """Set for good when the gateway stops: streams end after what they have in work."""
        OPERATIONS_IN_FLIGHT.set_function(lambda: float(self.operations))

    @property
    def is_open(self) -> bool:
        """Whether calls are taken."""
        return self._refusal is None

    def open(self) -> None:
        """Takes calls from now on."""
        if not self.draining.is_set():
            self._refusal = None

    def close(self) -> None:
        """Takes no more; what is in flight goes on."""
        self._refusal = lambda: Unavailable("this gateway is stopping")
        self.draining.set()

    def admit(self, operations: int = 1) -> None:
        """Counts operations as in flight; raises `Unavailable` or `LimitReached` and counts nothing."""
        if self._refusal is not None:
            raise self._refusal()
        if self.operations + operations > self._max_operations:
            REFUSED.inc(operations)
            raise LimitReached(f"{self._max_operations} operations are in flight here", limit="max_operations")
        self.operations += operations

    def release(self, operations: int = 1) -> None:
        """Takes back what `admit` has counted."""
        self.operations -= operations

    def admit_stream(self) -> None:
        """Counts a stream as open; raises as `admit` does."""
        if self._refusal is not None:
            raise self._refusal()
        if self.streams >= self._max_streams:
            raise LimitReached(f"{self._max_streams} streams are open here", limit="max_streams")
        self.streams += 1

    def release_stream(self) -> None:
        """Takes back what `admit_stream` has counted."""
        self.streams -= 1

    def deadline(self, context: grpc.aio.ServicerContext[Any, Any]) -> float:
        """When a call must have ended, on the loop's clock: what the caller says, within the gateway's own bounds."""
        # None without a deadline, which the stub forgets.
        remaining = cast("float | None", context.time_remaining())
        return self._now() + (self._default_timeout if remaining is None else min(remaining, self._max_timeout))

    def deadline_in(self, timeout_ms: int) -> float:
        """The same for operations on a stream, whose sender states milliseconds; 0 for none."""
        return self._now() + (min(timeout_ms / 1000, self._max_timeout) if timeout_ms else self._default_timeout)
