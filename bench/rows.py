"""The rows that every figure uses: dataset `customers` of the demo's policy, RegionCode SG, all of it owned by sin."""

from __future__ import annotations

from itertools import count

DATASET = "customers"
REGION = "SG"
IDC = "sin"
FOREIGN_REGION = "DE"
"""Owned by other IDCs than `IDC`, readable from there for the purpose below."""
FOREIGN_PURPOSE = "support"
KEYS = 4_000
"""Rows that are there from the start."""
WRITTEN_KEYS = 200_000
"""Rows that writes go over: they insert at first and meet their rows again, seldom, later."""
_STEP = 77_773
"""Without a common factor with `WRITTEN_KEYS`: neighbouring numbers are far apart, and each key has its turn."""

unique = count(1)
"""Numbers that are never used twice in a run."""


def key(number: int) -> str:
    """The key of one row; the same number gives the same key in every round."""
    return f"bench-{number % KEYS:06d}"


def written_key(number: int) -> str:
    """The key of one write: the numbers of a batch are scattered over all keys, as those of real callers are."""
    return f"write-{number * _STEP % WRITTEN_KEYS:06d}"


def values(number: int) -> dict[str, object]:
    """A row of ordinary size."""
    return {"name": f"customer {number:08d}", "spend": number}
