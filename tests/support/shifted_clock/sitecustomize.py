"""Shifts the wall clock of a process that has this folder on its PYTHONPATH, by `TEST_CLOCK_AHEAD` seconds.

Python runs it before anything else, so whatever asks `time` or `datetime` later, by whatever name, gets the shifted
time. The monotonic clock is left alone: that one no administrator sets.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from typing import Any

_AHEAD = float(os.environ.get("TEST_CLOCK_AHEAD", "0"))
_time, _time_ns, _datetime = time.time, time.time_ns, dt.datetime


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        # Times that C code has made are of the original class.
        return isinstance(instance, _datetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _datetime)


class ShiftedDatetime(_datetime, metaclass=_Kind):
    """The original, but for what it takes for now."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _datetime(*args, **kwargs)

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        return _datetime.now(tz) + dt.timedelta(seconds=_AHEAD)

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(dt.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> Any:
        return cls.now()


def _shifted_time() -> float:
    """grpc makes deadlines by Python's clock, and its core compares them by the system's: the two must agree."""
    caller = str(sys._getframe(1).f_globals.get("__name__"))  # pyright: ignore[reportPrivateUsage]: the only way
    return _time() + (0 if caller.startswith("grpc") else _AHEAD)


if _AHEAD:
    time.time = _shifted_time
    time.time_ns = lambda: _time_ns() + int(_AHEAD * 1e9)
    dt.datetime = ShiftedDatetime  # pyright: ignore[reportAttributeAccessIssue]: that is what it is here for
