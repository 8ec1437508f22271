"""How fast a job may go: a rate that it is given, and yielding while the IDC is slow.

The rate is a token bucket that holds one second. Yielding is the rule by which TCP shares a line (additive increase,
multiplicative decrease; Chiu and Jain, 1989): an answer that took longer than the threshold halves the share of time in
which the job works, at most once a second; each second of quick answers gives a sixteenth back. It never stops
altogether: the work is to be done, only later.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

SLOWEST: Final = 1 / 64
"""Smallest share of time in which a job works."""
LONGEST_PAUSE: Final = 10.0
"""Seconds; longest pause for the sake of others. A rate may ask for longer ones."""

_BURST: Final = 1.0
_REACTION: Final = 1.0
_STEP: Final = 1 / 16
_SHORTEST_WORK: Final = 0.02


class Pace:
    """The pace of one job in one runner; all of its shards share it."""

    def __init__(
        self,
        rate: float | None = None,
        yield_above: timedelta | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._threshold = math.inf if yield_above is None else yield_above.total_seconds()
        self._clock = clock
        self._paid_until = -math.inf
        self._speed = 1.0
        self._last_cut = -math.inf
        self._last_change = -math.inf

    @property
    def speed(self) -> float:
        """Share of time in which the job works: 1 while nothing is slow, never below `SLOWEST`."""
        return self._speed

    def observe(self, latency: float) -> None:
        """Takes notice of how long, in seconds, the database or the gateway took to answer; `inf` if it did not."""
        now = self._clock()
        if latency > self._threshold:
            if now >= self._last_cut + _REACTION:
                self._speed = max(SLOWEST, self._speed / 2)
                self._last_cut = self._last_change = now
        elif now >= self._last_change + _REACTION:
            self._speed = min(1.0, self._speed + _STEP)
            self._last_change = now

    def pause(self, rows: int, took: float = 0.0) -> float:
        """Seconds to wait after a batch of so many rows, which took so many seconds, before the next; 0 for none."""
        resting = min(max(took, _SHORTEST_WORK) * (1 / self._speed - 1), LONGEST_PAUSE)
        return max(resting, self._owed(rows))

    def _owed(self, rows: int) -> float:
        if self._rate is None:
            return 0.0
        now = self._clock()
        self._paid_until = max(self._paid_until, now - _BURST) + rows / self._rate
        return max(0.0, self._paid_until - now)
