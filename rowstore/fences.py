"""Fences of shards as an operator of shards sees them: opened, and looked at.

Writes and reads judge them inside their own statements (`rowstore.read_statements`, `rowstore.write_statements`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rowstore.model import FenceMode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg

    from rowstore.database import Database
    from rowstore.model import ShardEpoch

FENCE_COLUMNS: Final = "f.region_code, f.shard, f.epoch, f.mode, f.last_seq, f.last_time"

# Opening leaves a fence that is there alone, whatever it says: an answer of an older epoch, or another mode, is for the
# caller to judge (law L2). Sorted by the caller: two openings meet in the same order.
_OPEN: Final = """
INSERT INTO shard_fences (region_code, shard, epoch, mode)
SELECT region_code, shard, epoch, 'serving'
FROM unnest($1::text[], $2::int[], $3::bigint[]) AS s (region_code, shard, epoch)
ON CONFLICT (region_code, shard) DO NOTHING
"""

_GET: Final = f"""
SELECT {FENCE_COLUMNS}
FROM unnest($1::text[], $2::int[]) AS s (region_code, shard)
CROSS JOIN LATERAL (SELECT * FROM shard_fences f WHERE f.region_code = s.region_code AND f.shard = s.shard LIMIT 1) AS f
"""  # noqa: S608 (constants)

_GET_ALL: Final = f"SELECT {FENCE_COLUMNS} FROM shard_fences AS f ORDER BY f.region_code, f.shard"  # noqa: S608 (constants)


@dataclass(frozen=True, slots=True)
class FenceState:
    """A fence as the database has it."""

    region_code: str
    shard: int
    epoch: int
    mode: FenceMode
    last_seq: int
    """Sequence of the shard's newest change; 0 when there has been none."""
    last_time: datetime | None
    """Its time; None when there has been none."""


class Fences:
    """The fences of one IDC."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, shards: Sequence[ShardEpoch]) -> list[FenceState]:
        """Lets this IDC serve shards that it has never had; one that has a fence keeps it as it is.

        Returns the fences as they are now, in the order of `shards`. Idempotent. Raises `DatabaseUnavailable`.
        """
        if not shards:
            return []
        wanted = sorted({(shard.region_code, shard.shard): shard.epoch for shard in shards}.items())
        await self._database.fetch(
            _OPEN,
            [region_code for (region_code, _), _ in wanted],
            [shard for (_, shard), _ in wanted],
            [epoch for _, epoch in wanted],
            is_repeatable=True,
        )
        return await self.get(shards)

    async def get(self, shards: Sequence[ShardEpoch] = ()) -> list[FenceState]:
        """The fences of the shards that have one, in the order of `shards`; every fence when that is empty."""
        if not shards:
            return [fence_state(record) for record in await self._database.fetch(_GET_ALL, is_repeatable=True)]
        records = await self._database.fetch(
            _GET, [shard.region_code for shard in shards], [shard.shard for shard in shards], is_repeatable=True
        )
        states = {(state.region_code, state.shard): state for state in map(fence_state, records)}
        found = (states.get((shard.region_code, shard.shard)) for shard in shards)
        return [state for state in found if state is not None]


def fence_state(record: asyncpg.Record) -> FenceState:
    """Reads a record that begins with `FENCE_COLUMNS`."""
    region_code, shard, epoch, mode, last_seq, last_time = tuple(record)[:6]
    return FenceState(region_code, shard, epoch, FenceMode(mode), last_seq, last_time if last_seq else None)
