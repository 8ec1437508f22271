"""Which scheduled times of a job are due, and what becomes of those that passed while no runner was there.

Pure: the same answer for whoever asks. Whoever stores an answer does so only if `known` is still what it was, so that a
time is decided once in an IDC, by whichever runner is first, and a clock that is set back decides nothing again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, assert_never

from regionjobs.definition import Misfire
from regionjobs.triggers import next_after

if TYPE_CHECKING:
    from datetime import datetime

    from regionjobs.triggers import Trigger

MAX_TIMES: Final = 1000
"""Most times of one answer; of more than so many that have passed, the oldest are passed over."""
TOLERANCE: Final = timedelta(seconds=30)
"""How late a time may be noticed and still not be a misfire."""


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be fired, and what has been decided with it."""

    through: datetime
    """The newest time that has come. All up to it are decided: the `known` of the next question."""
    times: tuple[datetime, ...]
    """To be fired, oldest first."""
    misfires: int
    """How many times have come and are not fired; beyond `MAX_TIMES` they are not counted."""
    upcoming: datetime | None
    """The next time; None when there is none to come."""


def due(
    trigger: Trigger, rule: Misfire, *, known: datetime, now: datetime, tolerance: timedelta = TOLERANCE
) -> Due | None:
    """Decides what is to be done about the times after `known` and up to `now`; None when there are none."""
    passed = _times(trigger, known, now, MAX_TIMES)
    if not passed:
        return None
    newest = passed if len(passed) <= MAX_TIMES else _newest(trigger, known, now)
    match rule:
        case Misfire.RUN_ONCE:
            fired = newest[-1:]
        case Misfire.RUN_ALL:
            fired = newest
        case Misfire.SKIP:
            fired = [time for time in newest if now - time <= tolerance]
        case _:
            assert_never(rule)
    older = sum(time < newest[0] for time in passed)
    return Due(
        through=newest[-1],
        times=tuple(fired),
        misfires=min(older + len(newest) - len(fired), MAX_TIMES),
        upcoming=next_after(trigger, now),
    )


def _times(trigger: Trigger, start: datetime, end: datetime, most: int) -> list[datetime]:
    """Times after `start` and up to `end`, the oldest first; one more than `most` says that there are more."""
    found: list[datetime] = []
    time = next_after(trigger, start)
    while time is not None and time <= end and len(found) <= most:
        found.append(time)
        time = next_after(trigger, time)
    return found


def _newest(trigger: Trigger, start: datetime, end: datetime) -> list[datetime]:
    """The newest `MAX_TIMES` times, of more: looked for backwards in steps that fit, not all counted through."""
    found: list[datetime] = []
    step = timedelta(seconds=1)
    while len(found) < MAX_TIMES:
        earlier = max(start, end - step)
        wanted = MAX_TIMES - len(found)
        times = _times(trigger, earlier, end, wanted)
        if len(times) > wanted:
            step /= 2
        else:
            found, end, step = times + found, earlier, min(step * 2, earlier - start)
    return found
