"""Which IDC each shard is meant to have, from the policy and what is assigned already.

The controller assigns by this, and `plan` compares with it: a shard that the current policy is about to assign counts
as assigned, so that a policy which follows quickly cannot slip a move in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.assignment import assign

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.compile import Policy


def intended_owners(policy: Policy | None, owners: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], str]:
    """Every owner there is, and one by the policy's weights for each shard that has none; nothing is moved."""
    intended = dict(owners)
    for residency in policy.regions.values() if policy is not None else ():
        numbers = range(residency.shards)
        current = {n: owners[residency.region_code, n] for n in numbers if (residency.region_code, n) in owners}
        if len(current) < residency.shards:
            chosen = assign(residency.weights, residency.shards, current)
            for number in numbers:
                intended.setdefault((residency.region_code, number), chosen[number])
    return intended
