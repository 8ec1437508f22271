"""Which jobs there are in an IDC, whether they are paused, and how they stand.

What travels with a shard is shown and changed only where the IDC serves the shard: elsewhere it is a copy on its way
in, or what is left of one that has gone. An order locks the fences that it counts on, so it is in time for the last
round of a move, or leaves that shard alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from policy.errors import JobConflict
from rowstore.jobs.model import JobRecord, JobStatus, OffsetState, SetAside
from rowstore.jobs.offsets import SET_ASIDE_COLUMNS
from rowstore.tables import table_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from rowstore.jobs.offsets import Fetch

DOORBELL: Final = "regiongate_jobs"
"""Channel of PostgreSQL's NOTIFY: something for jobs has changed in this database. For new rows, without payload."""
ORDER: Final = "order"
"""Payload of what concerns jobs themselves: orders, and firings that begin or end."""

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

# Sorted, as writers take their fences: nobody waits for another in a circle.
_FENCE_OF: Final = """
SELECT f.region_code, f.shard FROM shard_fences AS f
WHERE f.region_code = s.region_code AND f.shard = s.shard AND f.mode IN ('serving', 'draining')
"""

_RESUME: Final = f"""
WITH stopped AS MATERIALIZED (
    SELECT region_code, shard FROM job_offsets WHERE job = $1 AND is_stopped ORDER BY job, region_code, shard
), served AS MATERIALIZED (
    SELECT f.* FROM stopped AS s CROSS JOIN LATERAL ({_FENCE_OF} FOR SHARE) AS f
), restarted AS (
    UPDATE job_offsets AS o SET is_stopped = false, failures = 0
    FROM served AS s WHERE o.job = $1 AND o.region_code = s.region_code AND o.shard = s.shard
)
UPDATE jobs SET is_paused = false, paused_by = '' WHERE job = $1 RETURNING 1
"""  # noqa: S608 (constants)

_IS_ASIDE: Final = "s.job = $1 AND ($2 = '' OR s.region_code = $2)"

_SET_ASIDE: Final = f"""
SELECT {SET_ASIDE_COLUMNS} FROM job_set_aside AS s CROSS JOIN LATERAL ({_FENCE_OF} LIMIT 1) AS f (r, n)
WHERE {_IS_ASIDE} ORDER BY job, region_code, shard, seq LIMIT $3
"""  # noqa: S608 (constants)

_COUNT_SET_ASIDE: Final = f"""
SELECT count(*) FROM job_set_aside AS s CROSS JOIN LATERAL ({_FENCE_OF} LIMIT 1) AS f
WHERE {_IS_ASIDE}
"""  # noqa: S608 (constants)

# A row that somebody is just dealing with is passed over: nothing waits here with fences held.
_REPLAY: Final = f"""
WITH shards AS MATERIALIZED (
    SELECT DISTINCT job, region_code, shard FROM job_set_aside AS s WHERE {_IS_ASIDE} ORDER BY job, region_code, shard
), served AS MATERIALIZED (
    SELECT f.* FROM shards AS s CROSS JOIN LATERAL ({_FENCE_OF} FOR SHARE) AS f
), free AS MATERIALIZED (
    SELECT a.* FROM served AS s CROSS JOIN LATERAL (
        SELECT a.region_code, a.shard, a.seq FROM job_set_aside AS a
        WHERE a.job = $1 AND a.region_code = s.region_code AND a.shard = s.shard FOR NO KEY UPDATE SKIP LOCKED
    ) AS a
)
UPDATE job_set_aside AS a SET is_replay_wanted = true
FROM free WHERE a.job = $1 AND a.region_code = free.region_code AND a.shard = free.shard AND a.seq = free.seq
RETURNING 1
"""  # noqa: S608 (constants)

# What a person asks now and then; it looks into the rows only where a shard has changes. A row that waits has waited,
# also when its time is by a clock that is ahead of this one.
_OFFSETS: Final = """
SELECT f.region_code, f.shard, f.epoch, coalesce(o.seq, 0), f.last_seq, coalesce(o.token, 0), coalesce(o.runner, ''),
    coalesce(o.rows, 0), coalesce(o.failures, 0), coalesce(o.last_error, ''), coalesce(o.is_stopped, false),
    o.last_success,
    CASE WHEN w.update_time IS NULL THEN 0
    ELSE greatest(extract(epoch FROM clock_timestamp() - w.update_time)::float8, 0.000001) END
FROM shard_fences AS f
LEFT JOIN job_offsets AS o ON o.job = $1 AND o.region_code = f.region_code AND o.shard = f.shard
LEFT JOIN LATERAL ({waiting}) AS w ON f.last_seq > coalesce(o.seq, 0)
WHERE f.mode IN ('serving', 'draining') AND f.region_code = ANY ($2::text[])
"""
_WAITING: Final = """
    SELECT r.update_time FROM {table} AS r
    WHERE r.region_code = f.region_code AND r.shard = f.shard AND r.seq > coalesce(o.seq, 0) AND r.seq > 0
    ORDER BY r.seq LIMIT 1
"""
_NOTHING_WAITS: Final = "SELECT NULL::timestamptz AS update_time"

# Of the last minute, or since the oldest run in it began; a run's rows count as if they had come evenly.
_RATE: Final = """
WITH recent AS (
    SELECT rows, start_time, greatest(extract(epoch FROM end_time - start_time)::float8, 0.001) AS seconds,
        extract(epoch FROM end_time - greatest(start_time, now - interval '1 minute'))::float8 AS counted, now
    FROM (
        SELECT rows, start_time, coalesce(end_time, now) AS end_time, now
        FROM job_runs CROSS JOIN (SELECT clock_timestamp() AS now) AS clock WHERE job = $1
    ) AS r
    WHERE end_time > now - interval '1 minute'
)
SELECT coalesce(
    sum(rows * least(counted / seconds, 1))
        / greatest(least(max(extract(epoch FROM now - start_time)::float8), 60), 0.001),
    0
) FROM recent
"""


async def register(fetch: Fetch, job: JobRecord) -> JobRecord:
    """Makes a job known, or brings its definition up to date; returns it as it is now.

    Raises `JobConflict` when a job of this name is known that scans something else: its offsets would mean nothing; or
    when it comes, over others, after itself.
    """
    after = {known.job: _after(known) for known in await list_jobs(fetch)} | {job.job: _after(job)}
    if follows_itself(job.job, after):
        raise JobConflict(f"job {job.job}: trigger: it would come after itself, and never end", field_name="trigger")
    records = await fetch(_REGISTER, job.job, job.dataset, job.scan, job.kind, job.definition)
    if not records:
        (known,) = await fetch(_GET, job.job)
        raise JobConflict(
            f"job {job.job} is known here as a {known['kind']} job with a {known['scan']} scan of {known['dataset']}; "
            f"this one is a {job.kind} job with a {job.scan} scan of {job.dataset}: give it another name",
            field_name="name",
        )
    return JobRecord(*records[0])


def follows_itself(job: str, after: Mapping[str, str | None]) -> bool:
    """Whether a job is triggered, directly or over others, by its own end; `after` says whose end triggers each."""
    seen, before = {job}, after.get(job)
    while before is not None and before not in seen:
        seen.add(before)
        before = after.get(before)
    return before == job


def _after(job: JobRecord) -> str | None:
    return json.loads(job.definition).get("after")


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
    """Lets a job go on, also where it has stopped at a row and this IDC serves; False when it was never run here."""
    return bool(await fetch(_RESUME, job))


async def set_aside_rows(fetch: Fetch, job: str, region_code: str, limit: int) -> tuple[list[SetAside], int]:
    """Rows that were set aside in shards that this IDC serves, and how many there are in all."""
    (total,) = await fetch(_COUNT_SET_ASIDE, job, region_code)
    return [SetAside(*record) for record in await fetch(_SET_ASIDE, job, region_code, limit)], total[0]


async def replay(fetch: Fetch, job: str, region_code: str) -> int:
    """Orders that rows that were set aside are tried again, where this IDC serves their shards; returns how many."""
    return len(await fetch(_REPLAY, job, region_code))


async def offsets(fetch: Fetch, job: JobRecord, regions: Sequence[str]) -> list[OffsetState]:
    """How far a job is in each shard of some RegionCodes that this IDC serves."""
    quoted = '"' + table_name(job.dataset).replace('"', '""') + '"'
    waiting = _NOTHING_WAITS if job.scan == "global" else _WAITING.format(table=quoted)
    records = await fetch(_OFFSETS.format(waiting=waiting), job.job, list(regions))
    return sorted((OffsetState(*record) for record in records), key=lambda state: (state.region_code, state.shard))


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
    """Wakes the runners of this IDC: something concerns jobs themselves."""
    await fetch("SELECT pg_notify($1, $2)", DOORBELL, ORDER)


async def ring_for_rows(fetch: Fetch) -> None:
    """Wakes the long-running jobs of this IDC: rows have changed."""
    await fetch("SELECT pg_notify($1, '')", DOORBELL)


async def now(fetch: Fetch) -> datetime:
    """The time by this database's clock, which is the one that jobs go by."""
    return (await fetch("SELECT clock_timestamp()"))[0][0]
