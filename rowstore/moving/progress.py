"""Progress of imports: a row for each shard, changed only together with what it tells of.

Locks are taken in one order, progress before fence, so imports and clearings cannot wait for each other in a circle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policy.errors import DatabaseUnavailable
from rowstore.moving.connections import fetch_any, run, transaction
from rowstore.moving.digest import NOTHING
from rowstore.moving.fence_steps import refusal
from rowstore.moving.model import ImportProgress, ShardDigest

if TYPE_CHECKING:
    from datetime import datetime

    from rowstore.database import Connection
    from rowstore.moving.model import MoveStep

_HERE: Final = "region_code = $1 AND shard = $2"

_GET: Final = f"""
SELECT first_pass_seq, source_seq, copied_seq, copied_time, rows_copied, bytes_copied, rows, digest, is_final
FROM shard_imports WHERE {_HERE} AND epoch = $3 AND attempt = $4
"""  # noqa: S608 (constants)

# Nobody else may load for the shard until this transaction ends; whoever comes second is told, and does not wait.
_LOCK: Final = f"{_GET} FOR UPDATE NOWAIT"

# Whatever was there is of another attempt, and an older one: the fence, looked at in the same transaction, says so.
_START: Final = """
INSERT INTO shard_imports (region_code, shard, epoch, attempt, digest) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (region_code, shard) DO UPDATE
SET epoch = excluded.epoch, attempt = excluded.attempt, digest = excluded.digest, first_pass_seq = NULL, source_seq = 0,
    copied_seq = 0, copied_time = NULL, rows_copied = 0, bytes_copied = 0, rows = 0, is_final = false, last_seq = 0,
    last_time = NULL
WHERE (shard_imports.epoch, shard_imports.attempt) <> (excluded.epoch, excluded.attempt)
"""

# The fence is looked at last, after all that took its time: it was not held meanwhile, and what was loaded for an
# attempt that has been called off is undone.
_SAVE: Final = f"""
WITH fence AS (
    SELECT region_code FROM shard_fences
    WHERE {_HERE} AND epoch = $3 AND attempt = $4 AND mode = 'importing' FOR SHARE
)
UPDATE shard_imports AS i
SET first_pass_seq = $5, source_seq = $6, copied_seq = $7, copied_time = $8, rows_copied = $9, bytes_copied = $10,
    rows = $11, digest = $12, is_final = $13, last_seq = $14, last_time = $15
FROM fence
WHERE i.region_code = $1 AND i.shard = $2 AND i.epoch = $3 AND i.attempt = $4
RETURNING true
"""  # noqa: S608 (constants)

_FENCE: Final = f"SELECT mode, epoch, attempt FROM shard_fences WHERE {_HERE}"  # noqa: S608 (constants)

_IMPORTING: Final = f"{_FENCE} AND epoch = $3 AND attempt = $4 AND mode = 'importing'"


@dataclass
class Progress:
    """How far an import is, as the next commit will have it."""

    first_pass_seq: int | None
    source_seq: int
    copied_seq: int
    copied_time: datetime | None
    rows_copied: int
    bytes_copied: int
    total: ShardDigest
    """Of the rows with a sequence."""
    is_final: bool = False
    last_time: datetime | None = None

    def told(self, *, is_done: bool = False, digest: ShardDigest | None = None) -> ImportProgress:
        """As a caller is told of it."""
        return ImportProgress(
            self.copied_seq,
            self.copied_time,
            self.source_seq,
            self.rows_copied,
            self.bytes_copied,
            is_done,
            digest,
        )


async def find(connection: Connection, step: MoveStep) -> Progress | None:
    """The progress of this very attempt."""
    return _progress(await fetch_any(connection, _GET, *_name(step)))


async def lock(connection: Connection, step: MoveStep, known: Progress) -> None:
    """Keeps every other import of the shard away until the transaction ends.

    Raises:
        StaleAttempt: there is no such attempt any more.
        DatabaseUnavailable: somebody else is loading for the same attempt, or has got further.
    """
    progress = _progress(await fetch_any(connection, _LOCK, *_name(step)))
    if progress is None:
        raise await stale(connection, step)
    if (progress.copied_seq, progress.copied_time) != (known.copied_seq, known.copied_time):
        raise DatabaseUnavailable("somebody else has gone on with this import")


async def start(connection: Connection, step: MoveStep) -> Progress:
    """Makes the progress of a new attempt, once nothing of older ones is left; raises `StaleAttempt`."""
    async with transaction(connection):
        await run(connection, _START, *_name(step), NOTHING.digest)
        if not await is_importing(connection, step, "FOR SHARE"):
            raise await stale(connection, step)
    progress = await find(connection, step)
    if progress is None:
        raise await stale(connection, step)
    return progress


async def is_importing(connection: Connection, step: MoveStep, how: str = "") -> bool:
    """Whether the fence lets this attempt load."""
    found = await fetch_any(connection, f"{_IMPORTING} {how}", *_name(step))
    return found is not None


async def save(connection: Connection, step: MoveStep, progress: Progress) -> None:
    """Writes the progress in the transaction that has loaded what it tells of; raises `StaleAttempt`."""
    saved = await fetch_any(
        connection,
        _SAVE,
        *_name(step),
        progress.first_pass_seq,
        progress.source_seq,
        progress.copied_seq,
        progress.copied_time,
        progress.rows_copied,
        progress.bytes_copied,
        progress.total.rows,
        progress.total.digest,
        progress.is_final,
        progress.copied_seq if progress.is_final else 0,
        progress.last_time,
    )
    if not saved:
        raise await stale(connection, step)


async def stale(connection: Connection, step: MoveStep) -> Exception:
    """What to raise when the fence does not let this attempt load."""
    return refusal(step, await fetch_any(connection, _FENCE, step.region_code, step.shard))


def _name(step: MoveStep) -> tuple[str, int, int, int]:
    return step.region_code, step.shard, step.epoch + 1, step.attempt


def _progress(record: object) -> Progress | None:
    if record is None:
        return None
    first_pass_seq, source_seq, copied_seq, copied_time, rows_copied, bytes_copied, rows, digest, is_final = record  # pyright: ignore[reportGeneralTypeIssues]: a record
    return Progress(
        first_pass_seq,
        source_seq,
        copied_seq,
        copied_time,
        rows_copied,
        bytes_copied,
        ShardDigest(rows, digest),
        is_final,
    )
