"""The rows that every figure uses: the dataset `customers` of the demo's policy, RegionCode DE, owned by fra or ams."""

from __future__ import annotations

DATASET = "customers"
REGION = "DE"
KEYS = 4_000


def key(number: int) -> str:
    """The key of one row; the same number gives the same key in every round."""
    return f"bench-{number % KEYS:06d}"


def values(number: int) -> dict[str, object]:
    """A row of ordinary size."""
    return {"name": f"customer {number:08d}", "spend": number}
