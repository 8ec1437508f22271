"""Jobs as a person reads them: how one stands in a word, and what is wrong with it in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policy.wording import shorten
from regiongate.cli.policy_calls import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.timestamp_pb2 import Timestamp

    from regiongate.v1 import job_service_pb2 as pb

LIST_COLUMNS: Final = (
    "job", "idc", "kind", "state", "runners", "shards", "behind", "lag_rows", "lag", "rows_per_second", "last_success"
)  # fmt: skip
STATUS_COLUMNS: Final = (
    "idc", "state", "runners", "shards", "behind", "stopped", "lag_rows", "lag", "rows_handled", "rows_per_second",
    "set_aside", "last_success", "next_scheduled",
)  # fmt: skip
RUN_COLUMNS: Final = (
    "run", "idc", "runner", "result", "shards", "rows_handled", "batches", "failures", "set_aside", "start", "seconds",
    "reason",
)  # fmt: skip
OFFSET_COLUMNS: Final = (
    "idc", "region_code", "shard", "epoch", "seq", "last_seq", "lag", "runner", "failures", "last_error", "state"
)  # fmt: skip


def job_row(job: pb.Job) -> dict[str, object]:
    """The cells of a job in one IDC."""
    return {
        "job": job.job,
        "idc": job.idc,
        "kind": job.kind,
        "state": state_of(job),
        "runners": len(job.runners),
        "shards": job.shards,
        "behind": job.shards_behind,
        "stopped": job.shards_stopped,
        "lag_rows": job.lag_rows,
        "lag": lag_text(job.lag_seconds),
        "rows_handled": job.rows_handled,
        "rows_per_second": f"{job.rows_per_second:,.0f}",
        "set_aside": job.rows_set_aside,
        "last_success": when(job.last_success),
        "next_scheduled": when(job.next_scheduled),
    }


def run_row(run: pb.JobRun) -> dict[str, object]:
    """The cells of a run."""
    lasted = (run.end_time.ToNanoseconds() - run.start_time.ToNanoseconds()) / 1e9 if run.HasField("end_time") else None
    return {
        "run": run.run,
        "idc": run.idc,
        "runner": run.runner,
        "result": run.result,
        "shards": run.shards,
        "rows_handled": run.rows_handled,
        "batches": run.batches,
        "failures": run.failures,
        "set_aside": run.rows_set_aside,
        "start": when(run.start_time),
        "seconds": "" if lasted is None else f"{lasted:.1f}",
        "reason": run.reason,
    }


def offset_row(offset: pb.JobOffset) -> dict[str, object]:
    """The cells of a job in one shard."""
    return {
        "idc": offset.idc,
        "region_code": offset.region_code,
        "shard": offset.shard,
        "epoch": offset.epoch,
        "seq": offset.seq,
        "last_seq": offset.last_seq,
        "lag": lag_text(offset.lag_seconds),
        "runner": offset.runner,
        "failures": offset.failures or "",
        "last_error": offset.last_error,
        "state": "stopped" if offset.is_stopped else "",
    }


def state_of(job: pb.Job) -> str:
    """How it stands, the gravest first."""
    if job.is_paused:
        return "paused"
    if job.shards and not job.runners:
        return "no runner"
    if job.shards_stopped:
        return "stopped in part"
    return "behind" if job.shards_behind else "up to date"


def problems(
    jobs: Iterable[pb.Job], offsets: Iterable[pb.JobOffset], runs: Iterable[pb.JobRun], unreachable: Iterable[str]
) -> Iterator[str]:
    """What somebody should look at, a sentence each; runs are newest first."""
    for idc in unreachable:
        yield f"{idc}: cannot be reached, nothing is known of it"
    for job in jobs:
        yield from _problems_of(job)
    by_cause: dict[tuple[str, str, str], list[str]] = {}
    for offset in offsets:
        if offset.is_stopped or offset.failures or offset.last_error:
            cause = offset.idc, _trouble_of(offset), offset.last_error
            by_cause.setdefault(cause, []).append(f"{offset.region_code}/{offset.shard}")
    for (idc, what, error), shards in sorted(by_cause.items()):
        yield f"{idc}: {what} in {counted(len(shards))} with {error or 'an error'}: {shorten(shards)}"
    newest: set[str] = set()
    for run in runs:
        if run.idc not in newest and run.result in {"failed", "lost"}:
            yield f"{run.idc}: the newest run is {run.result}" + (f": {run.reason}" if run.reason else "")
        newest.add(run.idc)


def _trouble_of(offset: pb.JobOffset) -> str:
    if offset.is_stopped:
        return "has stopped"
    return "keeps failing" if offset.failures else "waits"


def _problems_of(job: pb.Job) -> Iterator[str]:
    if job.is_paused:
        by = f" by {job.paused_by}" if job.paused_by else ""
        yield f"{job.idc}: paused{by}: regiongate jobs resume {job.job} --in {job.idc}"
    if job.shards and not job.runners:
        yield f"{job.idc}: no runner is there, and {counted(job.shards)} {'is' if job.shards == 1 else 'are'} its own"
    if job.rows_set_aside:
        look = f"regiongate jobs set-aside {job.job} --idc {job.idc}"
        yield f"{job.idc}: {counted(job.rows_set_aside, 'row')} set aside: {look}"


def lag_text(seconds: float) -> str:
    """How long the oldest change has waited; empty when none waits."""
    if not seconds:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def when(time: Timestamp) -> str:
    """A time to the second; empty when there is none."""
    return time.ToJsonString()[:19] + "Z" if time.seconds else ""
