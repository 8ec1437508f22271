"""When a batch job makes a pass: every so often, by a cron expression, at times, by hand, or after another job.

A trigger is a value. `next_after` is all that a schedule needs of it, and gives the same times to whoever asks and
however often: every runner of an IDC comes to the same ones, so that each is run once. All times are aware; what
comes out is UTC.

Cron expressions are read in their time zone, and follow Debian's rule where clocks change. A time that is named
(neither its seconds, minutes nor hours begin with `*`) comes once on each of its days: when the clock jumps over it, at
the end of the jump; when the clock shows it twice, the first time. An expression with `*` follows the clock on the
wall: what is jumped over does not come, and what is shown twice comes twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from policy.errors import InvalidJob

JOB_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
SHORTEST_PERIOD: Final = timedelta(seconds=1)
LONGEST_PERIOD: Final = timedelta(days=3660)
MAX_TIMES: Final = 1000
"""Most times that one `At` may name."""
MAX_EXPRESSION: Final = 200
"""Most characters of a cron expression."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)
_LOOK: Final = timedelta(hours=12)
"""No place changes its clock and changes it back within so short a time."""
_LONGEST_JUMP: Final = timedelta(hours=25)
"""Samoa once left out a whole day."""


@dataclass(frozen=True, slots=True)
class Every:
    """At all multiples of a period since 1970-01-01T00:00Z, whenever the runner was started."""

    days: float = field(default=0, compare=False)
    hours: float = field(default=0, compare=False)
    minutes: float = field(default=0, compare=False)
    seconds: float = field(default=0, compare=False)
    period: timedelta = field(init=False, repr=False)
    """All of them together: 1 second to 3,660 days."""

    def __post_init__(self) -> None:
        try:
            period = timedelta(days=self.days, hours=self.hours, minutes=self.minutes, seconds=self.seconds)
        except (TypeError, ValueError, OverflowError):
            raise _invalid("a period is made of numbers of days, hours, minutes and seconds") from None
        if not SHORTEST_PERIOD <= period <= LONGEST_PERIOD:
            raise _invalid(f"a period is from 1 second to {LONGEST_PERIOD.days:,} days")
        object.__setattr__(self, "period", period)

    def __str__(self) -> str:
        hours, rest = divmod(self.period - timedelta(days=self.period.days), timedelta(hours=1))
        minutes, seconds = divmod(rest, timedelta(minutes=1))
        parts = ((self.period.days, "d"), (hours, "h"), (minutes, "min"), (seconds.total_seconds(), "s"))
        return " ".join(["every", *(f"{count:.15g} {unit}" for count, unit in parts if count)])


@dataclass(frozen=True, slots=True)
class Cron:
    """By a cron expression of five fields (or six: with seconds first), in a time zone."""

    expression: str
    """As in Debian's cron, with names (`MON`), lists, ranges, steps, `L`, `LW` and `MON#1`."""
    timezone: str = "UTC"
    """A name of the IANA's, such as `Europe/Berlin`."""

    def __post_init__(self) -> None:
        if not isinstance(self.expression, str) or len(self.expression) > MAX_EXPRESSION:
            raise _invalid(f"a cron expression is a text of at most {MAX_EXPRESSION} characters")
        try:
            ZoneInfo(self.timezone)
        except (OSError, TypeError, ValueError, LookupError):
            raise _invalid(f"there is no time zone {self.timezone!r}") from None
        try:
            next(CronSim(self.expression, datetime(2000, 1, 1)))  # noqa: DTZ001 (of any place)
        except StopIteration:
            raise _invalid(f"cron expression {self.expression!r}: no day is like that") from None
        except (CronSimError, ValueError) as error:
            raise _invalid(f"cron expression {self.expression!r}: {str(error).lower()}") from None

    def __str__(self) -> str:
        return f"cron {self.expression!r} in {self.timezone}"

    @property
    def names_a_time(self) -> bool:
        """Whether it comes once on each of its days, whatever the clock does."""
        return not any(part.startswith("*") for part in self.expression.split()[:-3])


@dataclass(frozen=True, slots=True, init=False)
class At:
    """At the times named, and never again."""

    times: tuple[datetime, ...]
    """In order, each once, in UTC."""

    def __init__(self, *times: datetime) -> None:
        if not 1 <= len(times) <= MAX_TIMES:
            raise _invalid(f"give from 1 to {MAX_TIMES:,} times")
        if not all(isinstance(time, datetime) and time.utcoffset() is not None for time in times):
            raise _invalid("each time must be a datetime that knows its time zone")
        object.__setattr__(self, "times", tuple(sorted({time.astimezone(UTC) for time in times})))

    def __str__(self) -> str:
        return "at " + ", ".join(time.isoformat().replace("+00:00", "Z") for time in self.times)


@dataclass(frozen=True, slots=True)
class Manual:
    """Only when a person asks for it."""

    def __str__(self) -> str:
        return "by hand"


@dataclass(frozen=True, slots=True)
class After:
    """Each time that another job has ended a pass over all that the IDC owns."""

    job: str
    """The other job's name."""

    def __post_init__(self) -> None:
        if not isinstance(self.job, str) or not JOB_NAME.fullmatch(self.job):
            raise _invalid("after needs the name of a job")

    def __str__(self) -> str:
        return f"after {self.job}"


Trigger = Every | Cron | At | Manual | After


def next_after(trigger: Trigger, time: datetime) -> datetime | None:
    """The first time strictly after `time` at which a trigger fires, in UTC; None when time alone never will."""
    time = time.astimezone(UTC)
    match trigger:
        case Every():
            return time + trigger.period - (time - _EPOCH) % trigger.period
        case Cron():
            return _next_named(trigger, time) if trigger.names_a_time else _next_shown(trigger, time)
        case At():
            return next((at for at in trigger.times if at > time), None)
        case Manual() | After():
            return None


def _next_named(cron: Cron, time: datetime) -> datetime | None:
    """The next of the times on the wall, each taken once."""
    zone = ZoneInfo(cron.timezone)
    for local in CronSim(cron.expression, time.astimezone(zone).replace(tzinfo=None)):
        found = _first_showing(local, zone)
        # When the clock has been set back, times that it shows again are times that have been.
        if found > time:
            return found
    return None


def _first_showing(local: datetime, zone: ZoneInfo) -> datetime:
    """The first moment at which a place's clock shows `local`, or the end of the jump that leaves it out."""
    found = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if _shown(found, zone) == local:
        return found
    # Python reads a time that is left out by the clock as it was, so `found` is after the jump.
    return _first_change(found - _LONGEST_JUMP, found, zone) or found


def _next_shown(cron: Cron, time: datetime) -> datetime | None:
    """The next moment at which the clock on the wall shows a time that fits."""
    zone = ZoneInfo(cron.timezone)
    while True:
        offset = _shown(time, zone) - time.replace(tzinfo=None)
        local = next(CronSim(cron.expression, time.replace(tzinfo=None) + offset), None)
        if local is None:
            return None
        found = (local - offset).replace(tzinfo=UTC)
        change = _first_change(time, found, zone)
        if change is None:
            return found
        # From here on the clock shows another time; what it shows at the very change counts.
        if _fits(cron, _shown(change, zone)):
            return change
        time = change


def _fits(cron: Cron, local: datetime) -> bool:
    return next(CronSim(cron.expression, local - timedelta(seconds=1)), None) == local


def _first_change(start: datetime, end: datetime, zone: ZoneInfo) -> datetime | None:
    """The first moment after `start`, and not after `end`, from which on a place's clock is another than at `start`."""
    known = start.astimezone(zone).utcoffset()
    before, after = start, start
    while after.astimezone(zone).utcoffset() == known:
        if after >= end:
            return None
        before, after = after, min(after + _LOOK, end)
    while after - before > _TICK:
        middle = before + (after - before) / 2
        if middle.astimezone(zone).utcoffset() == known:
            before = middle
        else:
            after = middle
    return after


def _shown(time: datetime, zone: ZoneInfo) -> datetime:
    return time.astimezone(zone).replace(tzinfo=None, fold=0)


def _invalid(rule: str) -> InvalidJob:
    return InvalidJob(f"trigger: {rule}", field_name="trigger")
