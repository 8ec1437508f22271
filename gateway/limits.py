"""The limits of the request path in one place: what a caller may send, and how much may wait here.

Row limits are part of the interface; the engine's are settings with defaults that fit a small machine.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_KEY_BYTES = 512
MAX_ROW_BYTES = 1 << 20
MAX_REQUEST_ID_LENGTH = 64
MAX_DECIMAL_DIGITS = 1000
MAX_JSON_DEPTH = 200
MAX_BATCH_ROWS = 1000
"""Rows in one call, in one statement and in one message."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How much the engine may do at once, and how long it may wait."""

    reads_in_flight: int = 2
    """Read statements in flight for one dataset."""
    writes_in_flight: int = 2
    """Write statements in flight for one dataset."""
    max_batch_rows: int = MAX_BATCH_ROWS
    max_held: int = 10_000
    """Operations that may wait for a newer routing table."""
    hold_timeout: timedelta = timedelta(seconds=5)
    """How long one may wait, within its deadline."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """How this gateway talks to those of other IDCs."""

    connect_timeout: timedelta = timedelta(seconds=2)
    """How long a stream may take to open before the next gateway of the IDC is tried."""
    retry_pause: timedelta = timedelta(milliseconds=500)
    """How long a gateway that could not be reached is passed over, when another one lives."""
    max_in_flight: int = 20_000
    """Operations without an answer on one stream; more are refused."""
    max_message_bytes: int = 1 << 20
    """A message is closed when it has reached this size."""


class Sweep:
    """Looks for what has passed its deadline a few times a second, instead of a timer for each wait."""

    PERIOD: ClassVar[float] = 0.05

    __slots__ = ("_expire", "_is_armed")

    def __init__(self, expire: Callable[[float], bool]) -> None:
        """Starts idle; `expire(now)` ends what is late and says whether anything is left to watch."""
        self._expire = expire
        self._is_armed = False

    def wake(self) -> None:
        """Starts watching, unless it does already."""
        if not self._is_armed:
            self._is_armed = True
            asyncio.get_running_loop().call_later(self.PERIOD, self._run)

    def _run(self) -> None:
        self._is_armed = False
        if self._expire(asyncio.get_running_loop().time()):
            self.wake()
