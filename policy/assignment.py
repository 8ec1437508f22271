"""Which IDC owns which shard: exact quotas from the weights, reached with the fewest moves.

An IDC's quota is its share of the shards by largest remainder. Where remainders tie, the IDC that would otherwise
have to give a shard away goes first, then the name decides; so the same input always gives the same owners, and no
other choice of owners with lawful quotas moves fewer shards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def quotas(weights: Mapping[str, int], shards: int, current: Mapping[int, str]) -> dict[str, int]:
    """Number of shards for each IDC; they add up to `shards`.

    Raises:
        ValueError: no weight is above 0, or one is below.
    """
    total = sum(weights.values())
    if total <= 0 or any(weight < 0 for weight in weights.values()):
        raise ValueError("weights must not be negative, and one must be above 0")
    held = dict.fromkeys(weights, 0)
    for shard, idc in current.items():
        if idc in held and 0 <= shard < shards:
            held[idc] += 1
    floors = {idc: shards * weight // total for idc, weight in weights.items()}
    left = shards - sum(floors.values())
    by_claim = sorted(
        weights,
        key=lambda idc: (-(shards * weights[idc] % total), held[idc] <= floors[idc], idc),
    )
    for idc in by_claim[:left]:
        floors[idc] += 1
    return floors


def assign(weights: Mapping[str, int], shards: int, current: Mapping[int, str]) -> tuple[str, ...]:
    """Owner of each shard, by number: `current` changed in as few places as the weights allow.

    `current` maps shards that have an owner already to it; owners without a weight lose theirs.

    Raises:
        ValueError: no weight is above 0, or one is below.
    """
    room = quotas(weights, shards, current)
    owners: list[str] = [""] * shards
    for shard in range(shards):
        owner = current.get(shard, "")
        if room.get(owner, 0):
            room[owner] -= 1
            owners[shard] = owner
    takers = [idc for idc in sorted(room) for _ in range(room[idc])]
    free = (shard for shard, owner in enumerate(owners) if not owner)
    for shard, idc in zip(free, takers, strict=True):
        owners[shard] = idc
    return tuple(owners)


def fill(weights: Mapping[str, int], shards: int, kept: Mapping[int, str]) -> tuple[str, ...]:
    """Owner of each shard, by number: every shard of `kept` stays where it is, whatever the weights say of that.

    The others go where most is missing of an IDC's quota; of several such IDCs the name decides.

    Raises:
        ValueError: no weight is above 0, or one is below.
    """
    missing = quotas(weights, shards, kept)
    for shard, idc in kept.items():
        if idc in missing and 0 <= shard < shards:
            missing[idc] -= 1
    owners: list[str] = []
    for shard in range(shards):
        owner = kept.get(shard, "")
        if not owner:
            owner = min(missing, key=lambda idc: (-missing[idc], idc))
            missing[owner] -= 1
        owners.append(owner)
    return tuple(owners)
