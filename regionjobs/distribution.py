"""Which shards of a job are whose, among the runners of an IDC: rendezvous hashing.

Each runner bids for each shard, and the highest bid takes it. Bids depend on nothing but the job, the runner and the
shard, so all runners that know the same members come to the same answer without a word; a runner that leaves gives up
only its own shards, and one that joins takes only what it bids highest for. It spreads work, it does not fence it:
two runners that know different members may want one shard, and the token in the database decides (law L5).

Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_MASK: Final = 2**64 - 1


def share(job: str, shards: Iterable[tuple[str, int]], runners: Iterable[str], me: str) -> frozenset[tuple[str, int]]:
    """The shards, as (RegionCode, number), that `me` is to handle; none when it is not one of the runners."""
    members = set(runners)
    if me not in members:
        return frozenset()
    mine = _seed(job, me)
    others = [_seed(job, runner) for runner in sorted(members - {me})]
    return frozenset(shard for shard in shards if _is_highest(_spread(*shard), mine, others))


def _is_highest(shard: int, mine: int, others: list[int]) -> bool:
    """Whether one bid is above all others; most shards are lost to one of the first few, so few bids are made."""
    bid = _mixed(shard ^ mine)
    return all(_mixed(shard ^ other) < bid for other in others)


def _mixed(value: int) -> int:
    """The finalizer of MurmurHash3: one-to-one, so no two runners bid the same."""
    value = (value ^ (value >> 33)) * 0xFF51AFD7ED558CCD & _MASK
    value = (value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ (value >> 33)


def _seed(job: str, runner: str) -> int:
    # The job counts, so that several jobs do not all give their odd shards to the same runner.
    return _hash(f"{job}\0{runner}")


@lru_cache(maxsize=65_536)
def _spread(region_code: str, number: int) -> int:
    return _hash(f"{region_code}\0{number}")


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
