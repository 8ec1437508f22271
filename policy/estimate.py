"""How long the moves of a plan will take, from how fast earlier ones have copied.

The assumption: the moves of two pairs of IDCs run side by side, those of one pair one after the other, and each copies
as fast as the middle one of the last moves of some size. It is a guess to plan a day by, not a promise.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from policy.records import MoveRecord, RolloutRecord
from policy.store import told_as_ours

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.store import PolicyStore

RATES: Final = 50
"""How many moves the rate is taken from."""
LEAST_ROWS: Final = 1000
"""Smaller moves say more of the way than of the copying."""
SIDE_BY_SIDE: Final = 2
_MOST_ROLLOUTS: Final = 20


def estimate_seconds(rows: Mapping[tuple[str, str], int], rates: Sequence[float]) -> float | None:
    """Seconds for so many rows between each pair of IDCs; None when no rate is known, or nothing is copied."""
    total = sum(rows.values())
    if not total or not rates:
        return None
    return max(*rows.values(), total / SIDE_BY_SIDE) / median(rates)


async def copy_rates(store: PolicyStore) -> list[float]:
    """Rows a second of the last moves that have ended well and were of some size, newest first."""
    rates: list[float] = []
    with told_as_ours():
        listing = await store.client.list(store.keys.rollouts)
        newest = sorted(listing.items, key=lambda item: -item.create_revision)[:_MOST_ROLLOUTS]
        for item in newest:
            moves = await store.client.list(store.keys.moves_of(RolloutRecord.decode(item.value).rollout))
            records = sorted((MoveRecord.decode(it.value) for it in moves.items), key=lambda it: it.end_time)
            rates += [
                record.rows_per_second
                for record in reversed(records)
                if record.phase == "done" and record.rows >= LEAST_ROWS and record.rows_per_second > 0
            ]
            if len(rates) >= RATES:
                break
    return rates[:RATES]
