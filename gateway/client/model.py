"""What the SDK takes and gives: rows, receipts, decisions, pages. Immutable values, no protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Decision:
    """Why an answer is as it is: by rule and revision it can be explained later, too (law L7)."""

    rule: str
    """Name of the residency or access rule that decided."""
    policy_revision: int
    asking_jurisdiction: str
    owner_idc: str
    withheld: tuple[str, ...] = ()
    """Columns that did not travel, sorted."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as the caller may see it."""

    region_code: str
    key: str | int
    values: Mapping[str, Any]
    """Column -> `str`, `int`, `float`, `bool`, `bytes`, aware UTC `datetime`, `Decimal`, parsed JSON, or None."""
    version: int
    """Give it as `if_version` to change the row only if nobody else has."""
    update_time: datetime
    decision: Decision


@dataclass(frozen=True, slots=True)
class Receipt:
    """A write that is durable."""

    version: int
    update_time: datetime
    decision: Decision


@dataclass(frozen=True, slots=True)
class MoveReceipt:
    """A row that has another RegionCode now, durably."""

    version: int
    """Of the row under its new RegionCode; it has nothing to do with the one that it had."""
    update_time: datetime
    from_decision: Decision
    """By the rules of the RegionCode that it left."""
    to_decision: Decision
    """By those of the one that it has come to."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing."""

    rows: tuple[Row, ...]
    next_page_token: str
    """Empty on the last page."""
    unreachable: tuple[str, ...]
    """IDCs that could not be asked: their rows are missing from this page."""
    decision: Decision


@dataclass(frozen=True, slots=True)
class Put:
    """A row to write whole, in a batch."""

    region_code: str
    key: str | int
    values: Mapping[str, Any]
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """A row to delete, in a batch."""

    region_code: str
    key: str | int
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class ShardOwner:
    """Who owns a shard now."""

    region_code: str
    shard: int
    idc: str
    epoch: int
    phase: str


@dataclass(frozen=True, slots=True)
class RouteChange:
    """News of routes. A snapshot replaces everything that was told before."""

    is_snapshot: bool
    policy_revision: int
    store_revision: int
    home_idc: str
    routes: tuple[ShardOwner, ...]


@dataclass(frozen=True, slots=True)
class DatasetColumns:
    """A dataset as the policy describes it."""

    name: str
    key_type: str
    column_types: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for TLS; with certificate and key the client shows who it is (mutual TLS)."""

    ca_file: Path | None = None
    """The system's certificate authorities when None."""
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""
    """Name expected in the gateways' certificates, where it is not their address."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How a client behaves; the defaults suit a service near its home gateway."""

    purpose: str = ""
    """Stated with every call that states no other."""
    timeout: timedelta = timedelta(seconds=10)
    """For a call with all its retries, when the call says nothing else."""
    attempt_timeout: timedelta = timedelta(seconds=4)
    """After this long without an answer another gateway is tried."""
    connect_timeout: timedelta = timedelta(seconds=5)
    """For the first answer of any gateway of the target."""
    direct: bool = True
    """Whether to go straight to the owner; otherwise the home gateway forwards."""
    tls: TlsFiles | None = None
    max_in_flight: int = 10_000
    """Most calls that wait for one gateway; a call above it fails with `LimitReached`."""
    max_message_operations: int = 32
    """Most calls packed into one message: more saves little, and keeps both sides from working at the same time."""


def seconds_of(duration: timedelta | float) -> float:
    """A duration as seconds; a bare number is seconds already."""
    return duration.total_seconds() if isinstance(duration, timedelta) else duration
