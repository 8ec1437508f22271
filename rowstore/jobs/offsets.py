"""Offsets of jobs: which shards have work, who may do it, and how far it is (law L5).

Taking a shard raises its token under the fence's lock, so no claim is made on a shard that is closing. A commit updates
the offset where the token is still its own, the offset is where the batch began, and the fence lets this IDC serve. It
needs no lock on the fence, because closing a shard raises the tokens after the fence is shut: an update is either in
time for the last round of the move, or finds another token. Whoever reads the statement's answer to be "no row" must
roll back what it did beside it.

Writers wait for fences, so nothing that holds one here waits for a runner: a paused one may sit on its offset. And no
plan hangs on statistics (`rowstore.write_statements`): what is looked up is met in LATERAL subqueries that cannot be
flattened, and what is joined is not sorted, or a nested loop, forbidden as sorting is, would be as good as a hash join.
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


CLAIMED_AT_ONCE: Final = 100
"""Shards that one statement takes: writers of the first wait until it has the last."""

COMMIT_WITHIN: Final = "2s"
"""How long a transaction may sit idle once it has moved an offset: a paused runner holds up nobody for longer."""

# $3 is null for a job that never ends; $4 says that the fence's sequence tells nothing of the job's source.
_PENDING: Final = """
SELECT f.region_code, f.shard, f.epoch, f.last_seq, coalesce(o.seq, 0) AS seq
FROM shard_fences AS f
LEFT JOIN job_offsets AS o ON o.job = $1 AND o.region_code = f.region_code AND o.shard = f.shard
WHERE f.mode = ANY ($5::text[]) AND f.region_code = ANY ($2::text[]) AND o.is_stopped IS NOT TRUE
    AND (f.last_seq > coalesce(o.seq, 0) OR $4)
    AND ($3::timestamptz IS NULL OR o.pass_time IS NULL OR o.pass_time < $3 OR o.pass_epoch <> f.epoch)
"""

_REPLAYS_WANTED: Final = """
SELECT DISTINCT f.region_code, f.shard, f.epoch, f.last_seq, o.seq
FROM job_set_aside AS a
CROSS JOIN LATERAL (
    SELECT * FROM shard_fences AS f
    WHERE f.region_code = a.region_code AND f.shard = a.shard AND f.mode = 'serving' LIMIT 1
) AS f
CROSS JOIN LATERAL (
    SELECT o.seq FROM job_offsets AS o
    WHERE o.job = a.job AND o.region_code = a.region_code AND o.shard = a.shard AND NOT o.is_stopped LIMIT 1
) AS o
WHERE a.job = $1 AND a.is_replay_wanted AND a.region_code = ANY ($2::text[])
"""

# An offset that somebody holds is passed over: its batch is being committed, perhaps by a runner that is paused, and
# the fences are held meanwhile. Shards come sorted, and locks are taken in their order.
_CLAIM: Final = """
WITH free AS MATERIALIZED (
    SELECT s.region_code, s.shard, s.epoch
    FROM unnest($3::text[], $4::int[], $5::bigint[]) AS s (region_code, shard, epoch)
    LEFT JOIN LATERAL (
        SELECT true AS is_known FROM job_offsets AS o
        WHERE o.job = $1 AND o.region_code = s.region_code AND o.shard = s.shard LIMIT 1
    ) AS known ON true
    LEFT JOIN LATERAL (
        SELECT true AS is_held FROM job_offsets AS o
        WHERE o.job = $1 AND o.region_code = s.region_code AND o.shard = s.shard
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS held ON true
    WHERE is_known IS NULL OR is_held
), served AS MATERIALIZED (
    SELECT f.* FROM free AS s CROSS JOIN LATERAL (
        SELECT f.region_code, f.shard, f.epoch, f.last_seq FROM shard_fences AS f
        WHERE f.region_code = s.region_code AND f.shard = s.shard AND f.epoch = s.epoch AND f.mode = 'serving'
        FOR SHARE
    ) AS f
), taken AS (
    INSERT INTO job_offsets AS o (job, region_code, shard, token, runner)
    SELECT $1, region_code, shard, 1, $2 FROM served
    ON CONFLICT (job, region_code, shard) DO UPDATE SET token = o.token + 1, runner = $2
    RETURNING region_code, shard, token, seq, failures
)
SELECT t.region_code, t.shard, s.epoch, t.token, t.seq, s.last_seq, t.failures
FROM taken AS t JOIN served AS s USING (region_code, shard)
"""

_HELD: Final = """
WHERE o.job = $1 AND o.region_code = $2 AND o.shard = $3 AND o.token = $4
    AND f.region_code = $2 AND f.shard = $3 AND f.epoch = $5 AND f.mode IN ('serving', 'draining')
"""

# The server itself ends a transaction that does not commit soon after this: its shard could not be closed meanwhile.
_COMMIT_SOON: Final = f"set_config('idle_in_transaction_session_timeout', '{COMMIT_WITHIN}', true)"

# A pass for an older firing that comes late takes back nothing, unless the newer one was made under another owner.
_ADVANCE: Final = f"""
UPDATE job_offsets AS o
SET seq = $6, rows = o.rows + $7, batches = o.batches + $8, row_time = coalesce($9, o.row_time),
    last_success = clock_timestamp(), failures = 0, last_error = '',
    pass_time = CASE
        WHEN $10::timestamptz IS NULL THEN o.pass_time
        WHEN o.pass_epoch = $5 THEN greatest($10, o.pass_time)
        ELSE $10
    END,
    pass_epoch = CASE WHEN $10 IS NULL THEN o.pass_epoch ELSE $5 END
FROM shard_fences AS f
{_HELD} AND o.seq <= $6 AND ($11::bigint IS NULL OR o.seq = $11)
RETURNING {_COMMIT_SOON}
"""  # noqa: S608 (constants)

# Locked in the order of the shards, which are sorted; the update then goes by way of ON CONFLICT and needs no join.
_ADVANCE_MANY: Final = f"""
WITH held AS MATERIALIZED (
    SELECT o.region_code, o.shard, a.epoch, a.seq, a.rows
    FROM unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $11::bigint[])
        AS a (region_code, shard, token, epoch, seq, rows, after)
    CROSS JOIN LATERAL (
        SELECT o.region_code, o.shard FROM job_offsets AS o
        WHERE o.job = $1 AND o.region_code = a.region_code AND o.shard = a.shard AND o.token = a.token
            AND o.seq <= a.seq AND (a.after IS NULL OR o.seq = a.after)
        FOR NO KEY UPDATE
    ) AS o
    CROSS JOIN LATERAL (
        SELECT FROM shard_fences AS f
        WHERE f.region_code = a.region_code AND f.shard = a.shard AND f.epoch = a.epoch
            AND f.mode IN ('serving', 'draining') LIMIT 1
    ) AS f
)
INSERT INTO job_offsets AS o (job, region_code, shard, seq, rows, pass_epoch)
SELECT $1, region_code, shard, seq, rows, epoch FROM held
ON CONFLICT (job, region_code, shard) DO UPDATE
SET seq = excluded.seq, rows = o.rows + excluded.rows, batches = o.batches + $8, row_time = coalesce($9, o.row_time),
    last_success = clock_timestamp(), failures = 0, last_error = '',
    pass_time = CASE
        WHEN $10::timestamptz IS NULL THEN o.pass_time
        WHEN o.pass_epoch = excluded.pass_epoch THEN greatest($10, o.pass_time)
        ELSE $10
    END,
    pass_epoch = CASE WHEN $10 IS NULL THEN o.pass_epoch ELSE excluded.pass_epoch END
RETURNING {_COMMIT_SOON}
"""  # noqa: S608 (constants)

_FAILED: Final = f"""
UPDATE job_offsets AS o SET failures = o.failures + 1, last_error = $6
FROM shard_fences AS f
{_HELD}
RETURNING o.failures
"""  # noqa: S608 (constants)

_OBSTACLE: Final = f"""
UPDATE job_offsets AS o SET last_error = $6
FROM shard_fences AS f
{_HELD} AND o.last_error <> $6
RETURNING 1
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

# The offset is held until the transaction ends, so that closing waits for it; once it is closed it has no runner.
_FORGET: Final = """
WITH held AS MATERIALIZED (
    SELECT o.region_code, o.shard FROM unnest($2::text[], $3::int[]) AS s (region_code, shard)
    CROSS JOIN LATERAL (
        SELECT o.region_code, o.shard FROM job_offsets AS o
        WHERE o.job = $1 AND o.region_code = s.region_code AND o.shard = s.shard AND o.runner <> ''
        FOR NO KEY UPDATE
    ) AS o
)
DELETE FROM job_set_aside AS a
USING unnest($4::text[], $5::int[], $6::bigint[]) AS r (region_code, shard, seq)
    JOIN held AS h USING (region_code, shard)
WHERE a.job = $1 AND a.region_code = r.region_code AND a.shard = r.shard AND a.seq = r.seq
RETURNING 1
"""

SET_ASIDE_COLUMNS: Final = (
    "region_code, shard, seq, key, attempts, error_class, error, set_aside_time, is_replay_wanted"
)

_REPLAYS: Final = f"""
SELECT {SET_ASIDE_COLUMNS} FROM job_set_aside
WHERE job = $1 AND region_code = $2 AND shard = $3 AND is_replay_wanted ORDER BY seq LIMIT $4
"""  # noqa: S608 (constants)

# IS TRUE keeps the shards in a hash table of their own: as a join, each row could be compared with each shard.
_REPLAYS_AMONG: Final = f"""
SELECT {SET_ASIDE_COLUMNS} FROM job_set_aside
WHERE job = $1 AND is_replay_wanted AND ((region_code, shard) IN (SELECT * FROM unnest($2::text[], $3::int[]))) IS TRUE
ORDER BY job, region_code, shard, seq LIMIT $4
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
    return sorted(PendingShard(*record) for record in records)


async def replays_wanted(fetch: Fetch, job: str, regions: Sequence[str]) -> list[PendingShard]:
    """Shards with rows that somebody has ordered to be tried again."""
    return sorted(PendingShard(*record) for record in await fetch(_REPLAYS_WANTED, job, list(regions)))


async def claim(fetch: Fetch, job: str, runner: str, shards: Sequence[ShardEpoch]) -> list[Claim]:
    """Takes shards: those among them that this IDC serves at that epoch. Whoever had them can commit nothing more.

    A shard whose batch is being committed right now is not among them either: ask for it again. Raises `ClaimLost` when
    the runner has no name: it has no session then, and an offset without a runner is one that nobody holds.
    """
    if not runner:
        raise ClaimLost("a runner without a session takes no shard")
    wanted = sorted(set(shards))
    claims: list[Claim] = []
    for start in range(0, len(wanted), CLAIMED_AT_ONCE):
        region_codes, numbers, epochs = zip(*wanted[start : start + CLAIMED_AT_ONCE], strict=True)
        records = await fetch(_CLAIM, job, runner, list(region_codes), list(numbers), list(epochs))
        claims += sorted(Claim(*record) for record in records)
    return claims


async def advance(fetch: Fetch, job: str, held: Claim, step: Advance) -> None:
    """Moves the offset; raises `ClaimLost` when that is not ours to do (any more).

    With `step.after` a commit whose answer was lost cannot be made again under the same claim: the offset is not there
    any more. Without it, nobody may try again who has not claimed again.
    """
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
        step.after,
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
        [step.after for _, step in ordered],
    )
    if len(done) != len(steps):
        raise ClaimLost(f"{len(steps) - len(done)} of {len(steps)} shards are another's now")


async def note_failure(fetch: Fetch, job: str, held: Claim, error_class: str) -> int:
    """Counts a failure of the batch at hand, and returns how many there are; raises `ClaimLost`."""
    records = await fetch(_FAILED, job, held.region_code, held.shard, held.token, held.epoch, error_class)
    if not records:
        raise lost(held)
    return records[0][0]


async def note_obstacle(fetch: Fetch, job: str, held: Claim, error_class: str) -> None:
    """Notes what stands in the way of the batch at hand, for whoever looks; it counts as no failure."""
    await fetch(_OBSTACLE, job, held.region_code, held.shard, held.token, held.epoch, error_class)


async def stop_at(fetch: Fetch, job: str, held: Claim) -> None:
    """Stops the job in this shard until somebody resumes it; raises `ClaimLost`."""
    if not await fetch(_STOP, job, held.region_code, held.shard, held.token, held.epoch):
        raise lost(held)


async def set_aside(fetch: Fetch, job: str, row: SetAside) -> None:
    """Sets a row aside, or again. In the transaction that moves the offset past it, or one that checks the claim."""
    await fetch(_SET_ASIDE, job, row.region_code, row.shard, row.seq, row.key, row.attempts, row.error_class, row.error)


async def forget_set_aside(fetch: Fetch, job: str, rows: Sequence[SetAside]) -> None:
    """Rows that were set aside are gone, or handled after all, in the transaction that proves the claims.

    Raises `ClaimLost` when one was handled before, or a shard is closed.
    """
    if not rows:
        return
    # Locked in the order of the shards, as everybody does.
    shards = sorted({(row.region_code, row.shard) for row in rows})
    done = await fetch(
        _FORGET,
        job,
        [region_code for region_code, _ in shards],
        [shard for _, shard in shards],
        [row.region_code for row in rows],
        [row.shard for row in rows],
        [row.seq for row in rows],
    )
    if len(done) != len(rows):
        raise ClaimLost(f"{len(rows) - len(done)} of {len(rows)} rows that were set aside are handled already")


async def replays(fetch: Fetch, job: str, held: Claim, limit: int) -> list[SetAside]:
    """Rows of the shard that are to be tried again, in the order of their sequences."""
    records = await fetch(_REPLAYS, job, held.region_code, held.shard, limit)
    return [SetAside(*record) for record in records]


async def replays_among(fetch: Fetch, job: str, held: Sequence[Claim], limit: int) -> list[SetAside]:
    """Rows of some shards that are to be tried again, shard by shard in the order of their positions."""
    region_codes, shards = [it.region_code for it in held], [it.shard for it in held]
    return [SetAside(*record) for record in await fetch(_REPLAYS_AMONG, job, region_codes, shards, limit)]


def lost(held: Claim) -> ClaimLost:
    """What to raise for a claim that does not hold."""
    return ClaimLost(f"shard {held.region_code}/{held.shard} is another's now")
