"""What goes into the store of jobs and what comes out of it. Times are aware UTC, by the database's clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime


class RunResult(StrEnum):
    """How a run stands."""

    RUNNING = "running"
    DONE = "done"
    """It has reached its end, or was told to stop with nothing left undone."""
    ENDED = "ended"
    """Something changed: another run goes on where this one has stopped."""
    FAILED = "failed"
    """It stopped at a row that kept failing."""
    LOST = "lost"
    """Its runner is gone."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as this IDC's database knows it."""

    job: str
    dataset: str
    scan: str
    kind: str
    definition: str = "{}"
    is_paused: bool = False
    paused_by: str = ""
    last_scheduled: datetime | None = None
    next_scheduled: datetime | None = None
    create_time: datetime | None = None


class PendingShard(NamedTuple):
    """A shard that this IDC serves and in which a job has work."""

    region_code: str
    shard: int
    epoch: int
    last_seq: int
    """The shard's newest change."""
    seq: int
    """How far the job is; 0 before it has begun."""


class Claim(NamedTuple):
    """The right to go on in a shard, for as long as nobody else takes it (law L5)."""

    region_code: str
    shard: int
    epoch: int
    token: int
    seq: int
    """Where to go on."""
    last_seq: int
    """The shard's newest change when it was taken."""
    failures: int = 0
    """Of the batch at hand, by whoever tried."""


@dataclass(slots=True)
class Advance:
    """What a batch's commit says of a shard."""

    seq: int
    """Everything up to here is handled."""
    rows: int = 0
    batches: int = 1
    row_time: datetime | None = None
    """Time of the newest row handled."""
    pass_time: datetime | None = None
    """Set by the last commit of a pass: the firing that it was for."""
    after: int | None = None
    """Where the batch began: the commit is refused unless the offset is there. None: wherever it is up to `seq`."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row that a job could not handle."""

    region_code: str
    shard: int
    seq: int
    key: str
    attempts: int
    error_class: str
    error: str
    set_aside_time: datetime | None = None
    is_replay_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Firing:
    """A time at which a batch job is to make a pass over what this IDC owns."""

    job: str
    scheduled_time: datetime
    origin: str
    misfires: int = 0
    traceparent: str = ""
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a job on one runner."""

    run: str
    job: str
    runner: str
    policy_revision: int
    shards: int
    result: RunResult
    scheduled_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    rows: int = 0
    batches: int = 0
    failures: int = 0
    set_aside: int = 0
    reason: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class OffsetState:
    """How far a job is in one shard that this IDC serves."""

    region_code: str
    shard: int
    epoch: int
    seq: int
    last_seq: int
    token: int
    runner: str
    rows: int
    failures: int
    last_error: str
    is_stopped: bool
    last_success: datetime | None
    lag_seconds: float


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job in this IDC, summed up over the shards that it serves."""

    record: JobRecord
    shards: int
    shards_behind: int
    shards_stopped: int
    lag_rows: int
    """Changes that it has not handled. A shard has one order of changes for all datasets: at most so many are rows."""
    lag_seconds: float
    rows: int
    rows_per_second: float
    set_aside: int
    last_success: datetime | None
