"""The compiled policy: small immutable values that the request path looks things up in.

`policy.document` is what a person writes; this is what the machine decides by. Everything here is frozen, so a request
that holds one table decides by one revision, whatever arrives meanwhile (law L6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class KeyType(StrEnum):
    """Kind of a dataset's keys."""

    STRING = "string"
    INT64 = "int64"


class ColumnType(StrEnum):
    """Type of a column's values."""

    STRING = "string"
    INT64 = "int64"
    DOUBLE = "double"
    BOOL = "bool"
    BYTES = "bytes"
    TIMESTAMP = "timestamp"
    DECIMAL = "decimal"
    JSON = "json"


class Operation(StrEnum):
    """What access rules judge."""

    READ = "read"
    WRITE = "write"


class Phase(StrEnum):
    """Where a shard stands between two owners; the table of legal steps is `policy.move.STEPS`."""

    OPENING = "opening"
    """Assigned, but the owner's fence may not be open yet."""
    SERVING = "serving"
    COPYING = "copying"
    """The target copies; the owner serves on."""
    DRAINING = "draining"
    """The owner holds writes and answers reads."""
    CLOSING = "closing"
    """The owner serves nothing any more; the last changes follow."""
    ABORTING = "aborting"
    """Called off before the switch; the owner serves again as soon as its fence says so."""
    PURGING = "purging"
    """The owner serves; rows that lie elsewhere are being deleted."""


@dataclass(frozen=True, slots=True)
class Column:
    """One typed column of a dataset."""

    name: str
    type: ColumnType
    data_class: str = ""
    """The free word that access rules withhold by; empty when unclassified."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named kind of row."""

    name: str
    key_type: KeyType
    columns: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class Residency:
    """The residency rule as it holds for one RegionCode."""

    region_code: str
    rule: str
    jurisdictions: frozenset[str]
    weights: Mapping[str, int]
    """IDC -> weight, only IDCs with a weight above 0."""
    shards: int
    allows_transit: bool = True
    """Whether rows may pass through a gateway of another jurisdiction; otherwise the caller is sent to the owner."""


@dataclass(frozen=True, slots=True)
class AccessDecision:
    """What the policy says of an operation, by whom it is decided, and under which revision (law L7)."""

    allowed: bool
    rule: str
    """Name of the residency rule (same jurisdiction, or nothing else allows it) or of the access rule."""
    reason: str
    """One sentence for a person."""
    policy_revision: int
    asking_jurisdiction: str
    crosses_border: bool
    """Whether the asker's jurisdiction is another than those where the row may lie: such answers need a fresh table."""
    withheld: frozenset[str] = field(default_factory=frozenset)
    """Columns that must not travel."""


@dataclass(frozen=True, slots=True)
class Route:
    """Who owns a shard."""

    region_code: str
    shard: int
    idc: str
    epoch: int
    phase: Phase = Phase.SERVING
