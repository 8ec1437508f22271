"""Which jobs there are in an IDC, whether they are paused, and how they stand.

What travels with a shard is shown and changed only where the IDC serves the shard: elsewhere it is a copy on its way
in, or what is left of one that has gone. An order locks the fences that it counts on, so it is in time for the last
round of a move, or leaves that shard alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policy.errors import JobConflict
from rowstore.jobs.model import JobRecord, JobStatus, OffsetState, SetAside
from rowstore.jobs.offsets import SET_ASIDE_COLUMNS
from rowstore.tables import table_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rowstore.jobs.offsets import Fetch

DOORBELL: Final = "regiongate_jobs"
"""Channel of PostgreSQL's NOTIFY: something for jobs has changed in this database. The payload is empty."""

_COLUMNS: Final = (
    "job, dataset, scan, kind, definition, is_paused, paused_by, last_scheduled, next_scheduled, create_time"
)

_REGISTER: Final = f"""
INSERT INTO jobs AS j (job, dataset, scan, kind, definition) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (job) DO UPDATE SET definition = $5
WHERE j.dataset = $2 AND j.scan = $3 AND j.kind = $4
RETURNING {_COLUMNS}
"""  # noqa: S608 (constants)

_GET: Final = f"SELECT {_COLUMNS} FROM jobs WHERE job = $1"  # noqa: S608 (constants)
_LIST: Final = f"SELECT {_COLUMNS} FROM jobs WHERE $1 = '' OR job = $1 ORDER BY job"  # noqa: S608 (constants)

_PAUSE: Final = "UPDATE jobs SET is_paused = true, paused_by = $2 WHERE job = $1 RETURNING 1"

# Locked in one order, so that no two orders wait for each other.
_RESUME: Final = """
WITH resumed AS (
    UPDATE jobs SET is_paused = false, paused_by = '' WHERE job = $1 RETURNING 1
), held AS (
    SELECT f.region_code, f.shard FROM shard_fences AS f
    WHERE f.mode IN ('serving', 'draining') AND EXISTS (
        SELECT FROM job_offsets AS o
        WHERE o.job = $1 AND o.region_code = f.region_code AND o.shard = f.shard AND o.is_stopped
    )
    ORDER BY f.region_code, f.shard FOR SHARE OF f
), restarted AS (
    UPDATE job_offsets AS o SET is_stopped = false, failures = 0 FROM held AS h
    WHERE o.job = $1 AND o.region_code = h.region_code AND o.shard = h.shard AND o.is_stopped
)
SELECT FROM resumed
"""

_ASIDE_HERE: Final = """
FROM job_set_aside AS a
WHERE a.job = $1 AND ($2 = '' OR a.region_code = $2) AND EXISTS (
    SELECT FROM shard_fences AS f
    WHERE f.region_code = a.region_code AND f.shard = a.shard AND f.mode IN ('serving', 'draining')
)
"""
_SET_ASIDE: Final = f"SELECT {SET_ASIDE_COLUMNS} {_ASIDE_HERE} ORDER BY a.region_code, a.shard, a.seq LIMIT $3"
_COUNT_SET_ASIDE: Final = f"SELECT count(*) {_ASIDE_HERE}"
_REPLAY: Final = """
WITH held AS (
    SELECT f.region_code, f.shard FROM shard_fences AS f
    WHERE f.mode IN ('serving', 'draining') AND ($2 = '' OR f.region_code = $2) AND EXISTS (
        SELECT FROM job_set_aside AS a WHERE a.job = $1 AND a.region_code = f.region_code AND a.shard = f.shard
    )
    ORDER BY f.region_code, f.shard FOR SHARE OF f
), wanted AS (
    UPDATE job_set_aside AS a SET is_replay_wanted = true FROM held AS h
    WHERE a.job = $1 AND a.region_code = h.region_code AND a.shard = h.shard RETURNING 1
)
SELECT count(*) FROM wanted
"""

# What a person asks now and then; it looks into the rows only where a shard has changes.
_OFFSETS: Final = """
SELECT f.region_code, f.shard, f.epoch, coalesce(o.seq, 0), f.last_seq, coalesce(o.token, 0), coalesce(o.runner, ''),
    coalesce(o.rows, 0), coalesce(o.failures, 0), coalesce(o.last_error, ''), coalesce(o.is_stopped, false),
    o.last_success, coalesce(greatest(extract(epoch FROM clock_timestamp() - w.update_time), 0)::float8, 0)
FROM shard_fences AS f
LEFT JOIN job_offsets AS o ON o.job = $1 AND o.region_code = f.region_code AND o.shard = f.shard
LEFT JOIN LATERAL ({waiting}) AS w ON f.last_seq > coalesce(o.seq, 0)
WHERE f.mode IN ('serving', 'draining') AND f.region_code = ANY ($2::text[])
ORDER BY f.region_code, f.shard
"""
_WAITING: Final = """
    SELECT r.update_time FROM {table} AS r
    WHERE r.region_code = f.region_code AND r.shard = f.shard AND r.seq > coalesce(o.seq, 0) AND r.seq > 0
    ORDER BY r.seq LIMIT 1
"""
_NOTHING_WAITS: Final = "SELECT NULL::timestamptz AS update_time"

_RATE: Final = """
SELECT coalesce(sum(rows), 0)::float8
    / greatest(coalesce(sum(extract(epoch FROM coalesce(end_time, clock_timestamp()) - start_time)), 0)::float8, 0.001)
FROM job_runs WHERE job = $1 AND coalesce(end_time, clock_timestamp()) > clock_timestamp() - interval '1 minute'
"""


async def register(fetch: Fetch, job: JobRecord) -> JobRecord:
    """Makes a job known, or brings its definition up to date; returns it as it is now.

    Raises `JobConflict` when a job of this name is known that scans something else: its offsets would mean nothing.
    """
    records = await fetch(_REGISTER, job.job, job.dataset, job.scan, job.kind, job.definition)
    if not records:
        (known,) = await fetch(_GET, job.job)
        raise JobConflict(
            f"job {job.job} is known here as a {known['kind']} job with a {known['scan']} scan of {known['dataset']}; "
            f"this one is a {job.kind} job with a {job.scan} scan of {job.dataset}: give it another name",
            field_name="name",
        )
    return JobRecord(*records[0])


async def get(fetch: Fetch, job: str) -> JobRecord | None:
    """A job; None when it was never run here."""
    records = await fetch(_GET, job)
    return JobRecord(*records[0]) if records else None


async def list_jobs(fetch: Fetch, job: str = "") -> list[JobRecord]:
    """All jobs, or the one of that name."""
    return [JobRecord(*record) for record in await fetch(_LIST, job)]


async def pause(fetch: Fetch, job: str, by: str) -> bool:
    """Pauses a job; False when it was never run here."""
    return bool(await fetch(_PAUSE, job, by))


async def resume(fetch: Fetch, job: str) -> bool:
    """Lets a job go on, also where it has stopped at a row; False when it was never run here."""
    return bool(await fetch(_RESUME, job))


async def set_aside_rows(fetch: Fetch, job: str, region_code: str, limit: int) -> tuple[list[SetAside], int]:
    """Rows that were set aside, and how many there are in all."""
    (total,) = await fetch(_COUNT_SET_ASIDE, job, region_code)
    return [SetAside(*record) for record in await fetch(_SET_ASIDE, job, region_code, limit)], total[0]


async def replay(fetch: Fetch, job: str, region_code: str) -> int:
    """Orders that rows that were set aside are tried again; returns how many."""
    (wanted,) = await fetch(_REPLAY, job, region_code)
    return wanted[0]


async def offsets(fetch: Fetch, job: JobRecord, regions: Sequence[str]) -> list[OffsetState]:
    """How far a job is in each shard of some RegionCodes that this IDC serves."""
    quoted = '"' + table_name(job.dataset).replace('"', '""') + '"'
    waiting = _NOTHING_WAITS if job.scan == "global" else _WAITING.format(table=quoted)
    return [OffsetState(*record) for record in await fetch(_OFFSETS.format(waiting=waiting), job.job, list(regions))]


async def status(fetch: Fetch, job: JobRecord, regions: Sequence[str]) -> JobStatus:
    """A job, summed up."""
    states = await offsets(fetch, job, regions)
    (rate,) = await fetch(_RATE, job.job)
    (total,) = await fetch(_COUNT_SET_ASIDE, job.job, "")
    behind = [state for state in states if state.lag_seconds > 0]
    successes: list[datetime] = [state.last_success for state in states if state.last_success is not None]
    return JobStatus(
        record=job,
        shards=len(states),
        shards_behind=len(behind),
        shards_stopped=sum(state.is_stopped for state in states),
        lag_rows=sum(state.last_seq - state.seq for state in behind),
        lag_seconds=max((state.lag_seconds for state in behind), default=0.0),
        rows=sum(state.rows for state in states),
        rows_per_second=rate[0],
        set_aside=total[0],
        last_success=max(successes, default=None),
    )


async def ring(fetch: Fetch) -> None:
    """Wakes the runners of this IDC."""
    await fetch("SELECT pg_notify($1, '')", DOORBELL)


async def now(fetch: Fetch) -> datetime:
    """The time by this database's clock, which is the one that jobs go by."""
    return (await fetch("SELECT clock_timestamp()"))[0][0]
