"""What a database knows of jobs, as it travels in `JobService`; and checks of what is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp

from policy.errors import InvalidInput
from regiongate.v1 import job_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from rowstore.jobs.model import JobStatus, OffsetState, RunRecord, SetAside

MAX_PAGE: Final = 1000
DEFAULT_RUNS: Final = 20
DEFAULT_SET_ASIDE: Final = 100


def page_size(asked: int, default: int) -> int:
    """How many a page may have; raises `InvalidInput`."""
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidInput(f"page_size is 1 to {MAX_PAGE}", field_name="page_size")
    return asked or default


def check_job(name: str) -> str:
    """The name of a job that a request must have; raises `InvalidInput`."""
    if not name:
        raise InvalidInput("job is missing", field_name="job")
    return name


def job_message(status: JobStatus, idc: str, runners: Iterable[str]) -> pb.Job:
    """A job in one IDC."""
    record = status.record
    return pb.Job(
        job=record.job,
        idc=idc,
        dataset=record.dataset,
        scan=record.scan,
        kind=record.kind,
        definition=record.definition,
        is_paused=record.is_paused,
        paused_by=record.paused_by,
        runners=runners,
        shards=status.shards,
        shards_behind=status.shards_behind,
        shards_stopped=status.shards_stopped,
        lag_rows=status.lag_rows,
        lag_seconds=status.lag_seconds,
        rows_handled=status.rows,
        rows_per_second=status.rows_per_second,
        rows_set_aside=status.set_aside,
        last_success=stamp(status.last_success),
        next_scheduled=stamp(record.next_scheduled),
    )


def offset_message(state: OffsetState, job: str, idc: str) -> pb.JobOffset:
    """How far a job is in one shard."""
    return pb.JobOffset(
        job=job,
        idc=idc,
        region_code=state.region_code,
        shard=state.shard,
        epoch=state.epoch,
        seq=state.seq,
        last_seq=state.last_seq,
        token=state.token,
        runner=state.runner,
        lag_seconds=state.lag_seconds,
        rows_handled=state.rows,
        failures=state.failures,
        last_error=state.last_error,
        is_stopped=state.is_stopped,
        last_success=stamp(state.last_success),
    )


def run_message(run: RunRecord, idc: str) -> pb.JobRun:
    """A run."""
    return pb.JobRun(
        run=run.run,
        job=run.job,
        idc=idc,
        runner=run.runner,
        scheduled_time=stamp(run.scheduled_time),
        policy_revision=run.policy_revision,
        shards=run.shards,
        start_time=stamp(run.start_time),
        end_time=stamp(run.end_time),
        rows_handled=run.rows,
        batches=run.batches,
        failures=run.failures,
        rows_set_aside=run.set_aside,
        result=run.result,
        reason=run.reason,
        traceparent=run.traceparent,
    )


def set_aside_message(row: SetAside, job: str) -> pb.SetAsideRow:
    """A row that was set aside: for clients of its own IDC only (law L1)."""
    return pb.SetAsideRow(
        job=job,
        region_code=row.region_code,
        shard=row.shard,
        seq=row.seq,
        key=row.key,
        attempts=row.attempts,
        error_class=row.error_class,
        error=row.error,
        set_aside_time=stamp(row.set_aside_time),
        is_replay_wanted=row.is_replay_wanted,
    )


def stamp(time: datetime | None) -> Timestamp | None:
    """A time as it travels; None stays absent."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message
