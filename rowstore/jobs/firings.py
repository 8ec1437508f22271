"""Firings: the times at which a batch job is to make a pass, each once in an IDC, whoever notices that it is due.

All times are by the clock of the IDC's database: clocks of runners may be an hour apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rowstore.jobs.model import Firing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rowstore.jobs.offsets import Fetch

KEPT: Final = 1000
"""Ended firings that are kept of each job."""

_SCHEDULE: Final = """
WITH moved AS (
    UPDATE jobs SET last_scheduled = $3, next_scheduled = $6
    WHERE job = $1 AND last_scheduled IS NOT DISTINCT FROM $2 RETURNING 1
), fired AS (
    INSERT INTO job_firings (job, scheduled_time, origin, misfires)
    SELECT $1, t, 'schedule', $5 FROM unnest($4::timestamptz[]) AS t WHERE EXISTS (SELECT FROM moved)
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM moved
"""

_TRIGGER: Final = """
INSERT INTO job_firings (job, scheduled_time, origin, traceparent)
SELECT job, clock_timestamp(), $2, $3 FROM jobs WHERE job = $1 AND kind = 'batch'
ON CONFLICT (job, scheduled_time) DO UPDATE SET origin = excluded.origin, end_time = NULL
RETURNING scheduled_time
"""

_OPEN: Final = """
SELECT job, scheduled_time, origin, misfires, traceparent, end_time FROM job_firings
WHERE job = $1 AND end_time IS NULL ORDER BY scheduled_time
"""

# What still has to be done in a shard that is draining may come back to this IDC: it counts. Jobs that come after are
# fired as of now: a pass that they have made since the firing's own time knows nothing of what it has led to.
_FINISH: Final = """
WITH ended AS (
    UPDATE job_firings SET end_time = clock_timestamp()
    WHERE job = $1 AND scheduled_time = $2 AND end_time IS NULL
        AND NOT EXISTS (
            SELECT FROM shard_fences AS f
            LEFT JOIN job_offsets AS o ON o.job = $1 AND o.region_code = f.region_code AND o.shard = f.shard
            WHERE f.mode IN ('serving', 'draining') AND f.region_code = ANY ($3::text[])
                AND o.is_stopped IS NOT TRUE AND (f.last_seq > coalesce(o.seq, 0) OR $4)
                AND (o.pass_time IS NULL OR o.pass_time < $2 OR o.pass_epoch <> f.epoch)
        )
    RETURNING traceparent
), followed AS (
    INSERT INTO job_firings (job, scheduled_time, origin, traceparent)
    SELECT j.job, clock_timestamp(), 'after ' || $1, e.traceparent
    FROM ended AS e CROSS JOIN jobs AS j WHERE j.definition::json ->> 'after' = $1
    ON CONFLICT DO NOTHING
    RETURNING job
)
SELECT (SELECT count(*) FROM ended) AS ended, ARRAY (SELECT job FROM followed) AS followed
"""

_PRUNE: Final = """
DELETE FROM job_firings WHERE job = $1 AND end_time IS NOT NULL AND scheduled_time < (
    SELECT scheduled_time FROM job_firings WHERE job = $1 ORDER BY scheduled_time DESC OFFSET $2 LIMIT 1
)
"""


async def schedule(
    fetch: Fetch,
    job: str,
    *,
    known: datetime | None,
    through: datetime,
    times: Sequence[datetime],
    upcoming: datetime | None = None,
    misfires: int = 0,
) -> bool:
    """Fires scheduled times, and notes that all up to `through` are decided and which one is `upcoming`.

    Returns False, and does nothing, when somebody else has decided since `known` was read (`JobRecord.last_scheduled`).
    """
    (record,) = await fetch(_SCHEDULE, job, known, through, list(times), misfires, upcoming)
    return record[0] > 0


async def trigger(fetch: Fetch, job: str, origin: str, traceparent: str = "") -> datetime | None:
    """Fires now; None when this IDC knows no batch job of this name."""
    records = await fetch(_TRIGGER, job, origin, traceparent)
    return records[0][0] if records else None


async def open_firings(fetch: Fetch, job: str) -> list[Firing]:
    """Firings whose passes are not all made, oldest first."""
    return [Firing(*record) for record in await fetch(_OPEN, job)]


async def finish(
    fetch: Fetch, job: str, firing: datetime, regions: Sequence[str], *, is_global: bool
) -> tuple[bool, list[str]]:
    """Ends a firing if no shard that this IDC serves lacks its pass, and fires the jobs that come after.

    Returns whether it was ended by this call, and the jobs that were fired.
    """
    (record,) = await fetch(_FINISH, job, firing, list(regions), is_global)
    return record["ended"] > 0, list(record["followed"])


async def prune(fetch: Fetch, job: str) -> None:
    """Forgets the oldest firings."""
    await fetch(_PRUNE, job, KEPT - 1)
