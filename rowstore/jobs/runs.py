"""The history of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rowstore.jobs.model import RunRecord, RunResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from rowstore.jobs.offsets import Fetch

KEPT: Final = 1000
"""Runs that are kept of each job."""

_COLUMNS: Final = (
    "run, job, runner, policy_revision, shards, result, scheduled_time, start_time, end_time, rows, batches, failures,"
    " set_aside, reason, traceparent"
)

_START: Final = """
INSERT INTO job_runs (run, job, runner, policy_revision, shards, result, scheduled_time, traceparent)
VALUES ($1, $2, $3, $4, $5, 'running', $6, $7)
"""

# A run that somebody has called lost may still tell how it ended: it knows better.
_TELL: Final = """
UPDATE job_runs SET rows = $2, batches = $3, failures = $4, set_aside = $5, result = $6, reason = $7,
    end_time = CASE WHEN $6 = 'running' THEN NULL ELSE clock_timestamp() END
WHERE run = $1
"""

_LOSE: Final = """
UPDATE job_runs SET result = 'lost', reason = 'the runner is gone', end_time = clock_timestamp()
WHERE job = $1 AND result = 'running' AND runner <> ALL ($2::text[])
    AND start_time < clock_timestamp() - interval '5 s'
RETURNING run
"""

_LIST: Final = f"SELECT {_COLUMNS} FROM job_runs WHERE job = $1 ORDER BY start_time DESC, run LIMIT $2"  # noqa: S608

_PRUNE: Final = """
DELETE FROM job_runs WHERE job = $1 AND result <> 'running' AND start_time < (
    SELECT start_time FROM job_runs WHERE job = $1 ORDER BY start_time DESC OFFSET $2 LIMIT 1
)
"""


BATCH_APPLICATION: Final = "regiongate-batch-"
"""Where the `application_name` of the connections of each runner's batches begins."""

_SESSIONS: Final = """
SELECT DISTINCT application_name FROM pg_stat_activity
WHERE starts_with(application_name, $1) AND usename = current_user AND datname = current_database()
"""

_END_SESSIONS: Final = """
SELECT count(*) FROM pg_stat_activity AS a, LATERAL pg_terminate_backend(a.pid) AS ended
WHERE a.application_name = ANY ($1::text[]) AND a.usename = current_user AND a.datname = current_database()
"""


async def sessions(fetch: Fetch) -> set[str]:
    """By `application_name`: runners that have connections for batches."""
    return {record[0] for record in await fetch(_SESSIONS, BATCH_APPLICATION)}


async def end_sessions(fetch: Fetch, applications: Sequence[str]) -> int:
    """Ends the connections of runners that are gone: one that is only paused may hold locks on what it has touched.

    What they have not committed is rolled back. Returns how many there were.
    """
    (record,) = await fetch(_END_SESSIONS, list(applications))
    return record[0]


async def start(fetch: Fetch, run: RunRecord) -> None:
    """Notes that a run begins."""
    await fetch(
        _START, run.run, run.job, run.runner, run.policy_revision, run.shards, run.scheduled_time, run.traceparent
    )


async def tell(fetch: Fetch, run: RunRecord) -> None:
    """Notes how far a run is, or how it ended."""
    await fetch(_TELL, run.run, run.rows, run.batches, run.failures, run.set_aside, run.result.value, run.reason)


async def lose(fetch: Fetch, job: str, live: Sequence[str]) -> list[str]:
    """Notes that runs of runners that are not live any more are lost; returns which."""
    return [record[0] for record in await fetch(_LOSE, job, list(live))]


async def newest(fetch: Fetch, job: str, limit: int) -> list[RunRecord]:
    """Runs, newest first."""
    return [_run_record(record) for record in await fetch(_LIST, job, limit)]


async def prune(fetch: Fetch, job: str) -> None:
    """Forgets the oldest runs."""
    await fetch(_PRUNE, job, KEPT - 1)


def _run_record(record: asyncpg.Record) -> RunRecord:
    values: list[Any] = list(record)
    values[5] = RunResult(values[5])
    return RunRecord(*values)
