"""How long the moves of a plan will take, from how fast earlier ones were.

The assumption: the moves of two pairs of IDCs run side by side, those of one pair one after the other; each takes what
a small one has taken, and copies as fast as the middle one of the last moves of some size. It is a guess to plan a day
by, not a promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from policy.records import MoveRecord, RolloutRecord
from policy.store import told_as_ours

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policy.store import PolicyStore

SEEN: Final = 50
"""How many moves of each kind the pace is taken from."""
LEAST_ROWS: Final = 1000
"""Smaller moves say more of the way than of the copying."""
SIDE_BY_SIDE: Final = 2
_MOST_ROLLOUTS: Final = 20


class Load(NamedTuple):
    """What is to be moved between two IDCs."""

    moves: int
    rows: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast earlier moves were."""

    rows_per_second: float | None
    """None when none of some size has been seen."""
    seconds_each: float
    """What a move takes besides its copying; 0 when none that tells has been seen."""


def estimate_seconds(loads: Mapping[tuple[str, str], Load], pace: Pace) -> float | None:
    """Seconds for what is to be moved between each pair of IDCs; None when it is not known how fast rows are copied."""
    if pace.rows_per_second is None:
        return None
    rate = pace.rows_per_second
    seconds = [load.rows / rate + load.moves * pace.seconds_each for load in loads.values()]
    return max(*seconds, sum(seconds) / SIDE_BY_SIDE) if seconds else None


def pace_of(records: Iterable[MoveRecord]) -> Pace:
    """The pace of moves that have ended well; the newest come first."""
    rates: list[float] = []
    times: list[float] = []
    for record in records:
        if record.phase != "done":
            continue
        if record.rows >= LEAST_ROWS and record.rows_per_second > 0:
            rates.append(record.rows_per_second)
        elif record.start_time and record.end_time:
            times.append(_seconds(record))
    return Pace(median(rates[:SEEN]) if rates else None, median(times[:SEEN]) if times else 0.0)


def _seconds(record: MoveRecord) -> float:
    began, ended = (datetime.fromisoformat(text) for text in (record.start_time, record.end_time))
    return max(0.0, (ended - began).total_seconds())


async def read_pace(store: PolicyStore) -> Pace:
    """The pace of the moves of the last rollouts."""
    found: list[MoveRecord] = []
    with told_as_ours():
        listing = await store.client.list(store.keys.rollouts)
        newest = sorted(listing.items, key=lambda item: -item.create_revision)[:_MOST_ROLLOUTS]
        for item in newest:
            moves = await store.client.list(store.keys.moves_of(RolloutRecord.decode(item.value).rollout))
            records = (MoveRecord.decode(it.value) for it in moves.items)
            found += sorted(records, key=lambda it: it.end_time, reverse=True)
    return pace_of(found)
