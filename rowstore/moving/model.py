"""What goes into a move of a shard and what comes out of it.

The parts of an export mirror `ExportShardResponse` of the proto. In their order: a `Head`; for each slice a
`SliceStart`, chunks of one binary COPY, and a `SliceEnd`; and an `End`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class MoveStep(NamedTuple):
    """One step of one attempt to move a shard."""

    region_code: str
    shard: int
    epoch: int
    """The source's; the target opens at the next one."""
    attempt: int


class ShardDigest(NamedTuple):
    """What rows are, whatever their order: how many, and the XOR of their hashes."""

    rows: int
    digest: str
    """128 bits in lower-case hex."""


class TableLayout(NamedTuple):
    """A table's columns in the order of the copy, and their types as PostgreSQL names them."""

    table: str
    columns: tuple[str, ...]
    types: tuple[str, ...]


class Head(NamedTuple):
    """Begins an export."""

    tables: tuple[TableLayout, ...]
    last_seq: int
    """The source's newest."""


class SliceStart(NamedTuple):
    """Chunks of one COPY follow."""

    table: str
    through_seq: int | None = None
    """No row of the slice has a sequence above this one; None for a table without sequences."""


class SliceEnd(NamedTuple):
    """Ends a slice."""

    digest: ShardDigest
    """Of its rows."""
    through_seq: int | None = None
    """Set when every table with sequences has been sent up to here."""
    through_time: datetime | None = None
    """Set when every table that travels by time has been sent up to here."""


class End(NamedTuple):
    """Ends an export: everything up to here was sent."""

    last_seq: int
    last_time: datetime | None
    """Of the shard's newest change; None when there has been none."""


ExportPart = Head | SliceStart | bytes | SliceEnd | End


class ImportProgress(NamedTuple):
    """How far an import is; everything that it tells of is durable."""

    copied_seq: int
    """Where an export has to go on: `after_seq`."""
    copied_time: datetime | None
    """And `after_time`."""
    source_seq: int
    """The source's newest, as last seen."""
    rows_copied: int
    """Since the attempt began, also over breaks."""
    bytes_copied: int
    is_done: bool = False
    """Whether the import has done what it was asked for; the last one."""
    digest: ShardDigest | None = None
    """Of all rows here; only when the source is closed and all is copied."""


class PurgeProof(NamedTuple):
    """What a purge has deleted, and what it has found afterwards."""

    deleted: Mapping[str, int]
    """Rows by table; only those of this call, should an earlier one have been cut short."""
    remaining: int
    """Rows of the shard in all tables; 0 is the proof."""


class ShardSize(NamedTuple):
    """How much there is of a shard, tombstones included."""

    region_code: str
    shard: int
    rows: int
    bytes: int
    """Estimated from the sizes of the tables."""
