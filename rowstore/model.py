"""What goes into the row store and what comes out of it.

Column values are plain Python: `str`, `int`, `float`, `bool`, `bytes`, aware UTC `datetime` (microseconds), `Decimal`,
and for json the JSON text as `str`; `None` is null.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class FenceMode(StrEnum):
    """What an IDC may do with a shard (law L2)."""

    IMPORTING = "importing"
    SERVING = "serving"
    DRAINING = "draining"
    CLOSED = "closed"


class ShardEpoch(NamedTuple):
    """A shard, at the epoch that the caller believes in."""

    region_code: str
    shard: int
    epoch: int


class ReadKey(NamedTuple):
    """One row to read, at the epoch that the caller believes in."""

    region_code: str
    shard: int
    epoch: int
    key: str | int


class RowWrite(NamedTuple):
    """One row to put (`values`) or delete (`values` is None)."""

    region_code: str
    shard: int
    epoch: int
    key: str | int
    values: Mapping[str, object] | None
    if_version: int | None = None
    request_id: str = ""
    """Empty: not remembered. Otherwise a write of the same dataset, key and request_id is not done again, but answered
    with the first result, for as long as it is remembered."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A live row."""

    region_code: str
    key: str | int
    version: int
    update_time: datetime
    values: Mapping[str, object]


class Written(NamedTuple):
    """A write that is durable."""

    version: int
    update_time: datetime
    is_replay: bool = False
    """Whether this is the first result of an earlier attempt with the same request_id."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The row does not exist or has been deleted."""


@dataclass(frozen=True, slots=True)
class FenceMiss:
    """This IDC's database may not serve the shard at that epoch; nothing was read or written."""

    mode: FenceMode | None
    """None when there is no fence row."""
    epoch: int


@dataclass(frozen=True, slots=True)
class Arriving:
    """No live row, but one is on its way here from another RegionCode: whether it has come yet nobody can say."""


@dataclass(frozen=True, slots=True)
class VersionMismatch:
    """The row does not have the demanded version; nothing was written."""

    current: int
    """0 when there is no live row."""


ReadOutcome = StoredRow | Missing | Arriving | FenceMiss
WriteOutcome = Written | VersionMismatch | Arriving | FenceMiss


@dataclass(frozen=True, slots=True)
class ListPage:
    """Live rows of some shards of one RegionCode, in key order."""

    rows: tuple[StoredRow, ...]
    more: bool
    """Whether there are rows above the last one."""
    missed: tuple[ShardEpoch, ...] = ()
    """Shards that this IDC's database may not serve at that epoch; their rows are not here."""
    is_awaiting: bool = False
    """Whether a row is on its way into one of the shards, so that none is here: read again."""
