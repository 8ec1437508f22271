"""Which tables belong to shards, and how their rows go along when a shard moves.

The datasets' tables travel by sequence, and are found in the database's catalog; so are the tables of jobs. The system
tables are listed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from rowstore.jobs.tables import job_offsets, job_set_aside
from rowstore.tables import row_arrivals, row_departures, write_requests

if TYPE_CHECKING:
    from sqlalchemy import Table


class Travels(Enum):
    """How a system table's rows go along when their shard moves."""

    BY_TIME = "by time"
    """In rounds, by an `update_time` that never runs backwards inside a shard. A row is never changed."""
    WHOLE = "whole"
    """All at once, when the source is closed: for tables of few rows a shard, which change only while it is served."""


@dataclass(frozen=True)
class ShardTable:
    """A system table whose rows belong to a shard (`region_code`, `shard`)."""

    table: Table
    travels: Travels
    on_close: str = ""
    """A statement to run once the fence of shard `$2` of RegionCode `$1` is closed; more than once does no harm."""


SHARD_TABLES: Final[tuple[ShardTable, ...]] = (
    ShardTable(write_requests, Travels.BY_TIME),
    ShardTable(row_departures, Travels.WHOLE),
    ShardTable(row_arrivals, Travels.WHOLE),
    ShardTable(
        job_offsets,
        Travels.WHOLE,
        # A job's commit updates its offset under its token: it is either in time for the last round, or fails. Without
        # a runner nobody has the token: a closing that is repeated late leaves alone what the new owner has a copy of.
        on_close="""
            UPDATE job_offsets SET token = token + 1, runner = ''
            WHERE region_code = $1 AND shard = $2 AND runner <> ''
        """,
    ),
    ShardTable(job_set_aside, Travels.WHOLE),
)
"""System tables that travel with a shard, as the datasets' tables do."""

EFFECTS_PREFIX: Final = "effects_"
"""A job's own table of this prefix, with `region_code` and `shard`, travels whole with each shard: what a job makes of
rows stands under the same law as they do (law L1)."""
