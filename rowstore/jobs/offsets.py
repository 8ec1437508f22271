"""Offsets of jobs: which shards have work, who may do it, and how far it is (law L5).

Taking a shard raises its token under the fence's lock, so no claim is made on a shard that is closing. A commit updates
the offset where the token is still its own and the fence lets this IDC serve; it needs no lock on the fence, because
closing a shard raises the tokens after the fence is shut: an update is either in time for the last round of the move,
or finds another token. Whoever reads the statement's answer to be "no row" must roll back what it did beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from policy.errors import ClaimLost
from rowstore.jobs.model import Claim, PendingShard, SetAside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg

    from rowstore.jobs.model import Advance
    from rowstore.model import ShardEpoch


class Fetch(Protocol):
    """Runs a statement: `Database.fetch`, or the `fetch` of a connection that is inside a transaction."""

    async def __call__(self, statement: str, /, *arguments: Any) -> list[asyncpg.Record]:  # noqa: ANN401 (SQL values)
        """The records of the answer."""
        ...


# $3 is null for a job that never ends; $4 says that the fence's sequence tells nothing of the job's source.
_PENDING: Final = """
SELECT f.region_code, f.shard, f.epoch, f.last_seq, coalesce(o.seq, 0) AS seq
FROM shard_fences AS f
LEFT JOIN job_offsets AS o ON o.job = $1 AND o.region_code = f.region_code AND o.shard = f.shard
WHERE f.mode = ANY ($5::text[]) AND f.region_code = ANY ($2::text[]) AND o.is_stopped IS NOT TRUE
    AND (f.last_seq > coalesce(o.seq, 0) OR $4)
    AND ($3::timestamptz IS NULL OR o.pass_time IS NULL OR o.pass_time < $3 OR o.pass_epoch <> f.epoch)
ORDER BY f.region_code, f.shard
"""

_REPLAYS_WANTED: Final = """
SELECT DISTINCT f.region_code, f.shard, f.epoch, f.last_seq, o.seq
FROM job_set_aside AS a
JOIN shard_fences AS f ON f.region_code = a.region_code AND f.shard = a.shard AND f.mode = 'serving'
JOIN job_offsets AS o ON o.job = a.job AND o.region_code = a.region_code AND o.shard = a.shard
WHERE a.job = $1 AND a.is_replay_wanted AND a.region_code = ANY ($2::text[])
"""

_CLAIM: Final = """
WITH served AS (
    SELECT f.region_code, f.shard, f.epoch, f.last_seq
    FROM shard_fences AS f
    JOIN unnest($3::text[], $4::int[], $5::bigint[]) AS s (region_code, shard, epoch)
        ON s.region_code = f.region_code AND s.shard = f.shard AND s.epoch = f.epoch
    WHERE f.mode = 'serving'
    ORDER BY f.region_code, f.shard FOR SHARE OF f
), taken AS (
    INSERT INTO job_offsets AS o (job, region_code, shard, token, runner)
    SELECT $1, region_code, shard, 1, $2 FROM served ORDER BY region_code, shard
    ON CONFLICT (job, region_code, shard) DO UPDATE SET token = o.token + 1, runner = $2
    RETURNING region_code, shard, token, seq, failures
)
SELECT t.region_code, t.shard, s.epoch, t.token, t.seq, s.last_seq, t.failures
FROM taken AS t JOIN served AS s USING (region_code, shard)
ORDER BY t.region_code, t.shard
"""

# An offset that is ahead already can only be a repetition of this very commit.
_HELD: Final = """
WHERE o.job = $1 AND o.region_code = $2 AND o.shard = $3 AND o.token = $4
    AND f.region_code = $2 AND f.shard = $3 AND f.epoch = $5 AND f.mode IN ('serving', 'draining')
"""

_ADVANCE: Final = f"""
UPDATE job_offsets AS o
SET seq = $6, rows = o.rows + $7, batches = o.batches + $8, row_time = coalesce($9, o.row_time),
    last_success = clock_timestamp(), failures = 0, last_error = '',
    pass_time = coalesce($10, o.pass_time),
    pass_epoch = CASE WHEN $10::timestamptz IS NULL THEN o.pass_epoch ELSE $5 END
FROM shard_fences AS f
{_HELD} AND o.seq <= $6
RETURNING 1
"""  # noqa: S608 (constants)

_ADVANCE_MANY: Final = """
UPDATE job_offsets AS o
SET seq = a.seq, rows = o.rows + a.rows, batches = o.batches + $8, row_time = coalesce($9, o.row_time),
    last_success = clock_timestamp(), failures = 0, last_error = '',
    pass_time = coalesce($10, o.pass_time),
    pass_epoch = CASE WHEN $10::timestamptz IS NULL THEN o.pass_epoch ELSE a.epoch END
FROM unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
    AS a (region_code, shard, token, epoch, seq, rows)
JOIN shard_fences AS f ON f.region_code = a.region_code AND f.shard = a.shard AND f.epoch = a.epoch
    AND f.mode IN ('serving', 'draining')
WHERE o.job = $1 AND o.region_code = a.region_code AND o.shard = a.shard AND o.token = a.token AND o.seq <= a.seq
RETURNING 1
"""

_FAILED: Final = f"""
UPDATE job_offsets AS o SET failures = o.failures + 1, last_error = $6
FROM shard_fences AS f
{_HELD}
RETURNING o.failures
"""  # noqa: S608 (constants)

_STOP: Final = f"""
UPDATE job_offsets AS o SET is_stopped = true
FROM shard_fences AS f
{_HELD}
RETURNING 1
"""  # noqa: S608 (constants)

_SET_ASIDE: Final = """
INSERT INTO job_set_aside AS a (job, region_code, shard, seq, key, attempts, error_class, error)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (job, region_code, shard, seq) DO UPDATE
SET attempts = a.attempts + $6, error_class = $7, error = $8, set_aside_time = clock_timestamp(),
    is_replay_wanted = false
"""

_FORGET: Final = "DELETE FROM job_set_aside WHERE job = $1 AND region_code = $2 AND shard = $3 AND seq = $4 RETURNING 1"

SET_ASIDE_COLUMNS: Final = (
    "region_code, shard, seq, key, attempts, error_class, error, set_aside_time, is_replay_wanted"
)

_REPLAYS: Final = f"""
SELECT {SET_ASIDE_COLUMNS} FROM job_set_aside
WHERE job = $1 AND region_code = $2 AND shard = $3 AND is_replay_wanted ORDER BY seq LIMIT $4
"""  # noqa: S608 (constants)


async def pending(
    fetch: Fetch,
    job: str,
    regions: Sequence[str],
    *,
    firing: datetime | None,
    is_global: bool,
    modes: Sequence[str] = ("serving",),
) -> list[PendingShard]:
    """Shards that this IDC serves and in which the job has work: one statement, however many there are.

    Args:
        fetch: Where.
        job: Its name.
        regions: RegionCodes of the job.
        firing: What a pass is to be made for; None for a job that goes on for ever.
        is_global: The job's source is not the shard's sequence: each shard has work until its pass is made.
        modes: Modes of fences that count.
    """
    records = await fetch(_PENDING, job, list(regions), firing, is_global, list(modes))
    return [PendingShard(*record) for record in records]


async def replays_wanted(fetch: Fetch, job: str, regions: Sequence[str]) -> list[PendingShard]:
    """Shards with rows that somebody has ordered to be tried again."""
    return [PendingShard(*record) for record in await fetch(_REPLAYS_WANTED, job, list(regions))]


async def claim(fetch: Fetch, job: str, runner: str, shards: Sequence[ShardEpoch]) -> list[Claim]:
    """Takes shards: those among them that this IDC serves at that epoch. Whoever had them can commit nothing more."""
    if not shards:
        return []
    region_codes, numbers, epochs = zip(*shards, strict=True)
    records = await fetch(_CLAIM, job, runner, list(region_codes), list(numbers), list(epochs))
    return [Claim(*record) for record in records]


async def advance(fetch: Fetch, job: str, held: Claim, step: Advance) -> None:
    """Moves the offset; raises `ClaimLost` when that is not ours to do (any more)."""
    done = await fetch(
        _ADVANCE,
        job,
        held.region_code,
        held.shard,
        held.token,
        held.epoch,
        step.seq,
        step.rows,
        step.batches,
        step.row_time,
        step.pass_time,
    )
    if not done:
        raise lost(held)


async def advance_many(fetch: Fetch, job: str, steps: Sequence[tuple[Claim, Advance]]) -> None:
    """Moves several offsets; raises `ClaimLost` unless all are ours to move. Only inside a transaction.

    `batches`, `row_time` and `pass_time` are those of the first step: a batch is one.
    """
    if not steps:
        return
    first = steps[0][1]
    ordered = sorted(steps, key=lambda step: step[0][:2])
    done = await fetch(
        _ADVANCE_MANY,
        job,
        [held.region_code for held, _ in ordered],
        [held.shard for held, _ in ordered],
        [held.token for held, _ in ordered],
        [held.epoch for held, _ in ordered],
        [step.seq for _, step in ordered],
        [step.rows for _, step in ordered],
        first.batches,
        first.row_time,
        first.pass_time,
    )
    if len(done) != len(steps):
        raise ClaimLost(f"{len(steps) - len(done)} of {len(steps)} shards are another's now")


async def note_failure(fetch: Fetch, job: str, held: Claim, error_class: str) -> int:
    """Counts a failure of the batch at hand, and returns how many there are; raises `ClaimLost`."""
    records = await fetch(_FAILED, job, held.region_code, held.shard, held.token, held.epoch, error_class)
    if not records:
        raise lost(held)
    return records[0][0]


async def stop_at(fetch: Fetch, job: str, held: Claim) -> None:
    """Stops the job in this shard until somebody resumes it; raises `ClaimLost`."""
    if not await fetch(_STOP, job, held.region_code, held.shard, held.token, held.epoch):
        raise lost(held)


async def set_aside(fetch: Fetch, job: str, row: SetAside) -> None:
    """Sets a row aside, or again. In the transaction that moves the offset past it, or one that checks the claim."""
    await fetch(_SET_ASIDE, job, row.region_code, row.shard, row.seq, row.key, row.attempts, row.error_class, row.error)


async def forget_set_aside(fetch: Fetch, job: str, row: SetAside) -> None:
    """A row that was set aside is handled after all, in the same transaction."""
    await fetch(_FORGET, job, row.region_code, row.shard, row.seq)


async def replays(fetch: Fetch, job: str, held: Claim, limit: int) -> list[SetAside]:
    """Rows of the shard that are to be tried again, in the order of their sequences."""
    records = await fetch(_REPLAYS, job, held.region_code, held.shard, limit)
    return [SetAside(*record) for record in records]


def lost(held: Claim) -> ClaimLost:
    """What to raise for a claim that does not hold."""
    return ClaimLost(f"shard {held.region_code}/{held.shard} is another's now")
