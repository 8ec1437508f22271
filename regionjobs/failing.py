"""What becomes of a batch that fails: a pure function over its parts.

    a batch --fails--> again, after a pause --fails `attempts` times--> halves --fail--> quarters ... --> one row
    one row --fails--> set aside, and the rest goes on; or the job stops there

Only a failure of the handler counts. What waiting helps against (a database that restarts, a gateway that is not
there) is tried again for as long as it lasts, and never costs a row. A lost claim ends the work at once: whoever has
the shard now does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from regionjobs.definition import OnPoison


class Outcome(Enum):
    """How one try at a part ended."""

    DONE = "done"
    FAILED = "failed"
    PASSING = "passing"
    """Waiting helps."""
    LOST = "lost"
    """The shard is another's."""


class Verdict(Enum):
    """What is to be done now."""

    NEXT = "next"
    """Go on with the next part."""
    AGAIN = "again"
    """Pause, then try the first part again."""
    SPLIT = "split"
    """Go on with the first half."""
    SET_ASIDE = "set aside"
    """Set the one row of the part aside, then go on with the next."""
    STOP = "stop"
    """Stop in this shard until somebody resumes the job."""
    GIVE_UP = "give up"
    """Leave all parts to whoever has the shard now."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of a batch, and how often they have failed."""

    start: int
    stop: int
    failures: int = 0


Parts = tuple[Part, ...]
"""What is left of a batch, in order; the first part is tried now."""


def whole(count: int, *, failures: int, attempts: int) -> Parts:
    """A batch of so many rows, which has failed so often before, perhaps on another runner."""
    return (Part(0, count, min(failures, attempts - 1)),)


def step(parts: Parts, outcome: Outcome, *, attempts: int, on_poison: OnPoison) -> tuple[Parts, Verdict]:
    """What is left after a try at the first part, and what to do."""
    first, *rest = parts
    match outcome:
        case Outcome.DONE:
            return tuple(rest), Verdict.NEXT
        case Outcome.LOST:
            return parts, Verdict.GIVE_UP
        case Outcome.PASSING:
            return parts, Verdict.AGAIN
        case Outcome.FAILED:
            return _failed(replace(first, failures=first.failures + 1), tuple(rest), attempts, on_poison)


def _failed(first: Part, rest: Parts, attempts: int, on_poison: OnPoison) -> tuple[Parts, Verdict]:
    if first.failures < attempts:
        return (first, *rest), Verdict.AGAIN
    if first.stop - first.start > 1:
        # The halves have used up their attempts, too: each is tried once.
        middle, spent = (first.start + first.stop) // 2, attempts - 1
        return (Part(first.start, middle, spent), Part(middle, first.stop, spent), *rest), Verdict.SPLIT
    if on_poison is OnPoison.STOP:
        return (first, *rest), Verdict.STOP
    return rest, Verdict.SET_ASIDE
