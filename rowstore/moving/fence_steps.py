"""The steps of a move on a shard's fence: one statement each, which judges the row as it is after the wait for it.

    source                                        target (epoch + 1)
    serving  --begin_export--> serving            any but serving --begin_import--> importing
    serving  --drain---------> draining           importing       --open----------> serving
    draining --close---------> closed             importing, none --bar-----------> closed
    serving, draining, closed --reopen--> serving

`attempt` only goes up: a step of a lower one finds no row, and raises `StaleAttempt` (law L2). A closed fence stays for
ever, even when its rows are gone: without it a late order to open the shard would make a second owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policy.errors import StaleAttempt
from rowstore.fences import FENCE_COLUMNS, fence_state
from rowstore.model import FenceMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rowstore.database import Database
    from rowstore.fences import FenceState
    from rowstore.moving.model import MoveStep
    from rowstore.shard_tables import ShardTable

_HERE: Final = "f.region_code = $1 AND f.shard = $2"

_BEGIN_EXPORT: Final = f"""
UPDATE shard_fences AS f SET attempt = $4
WHERE {_HERE} AND f.epoch = $3 AND f.attempt <= $4 AND f.mode = 'serving'
RETURNING {FENCE_COLUMNS}
"""  # noqa: S608 (constants)

_DRAIN: Final = f"""
UPDATE shard_fences AS f SET mode = 'draining'
WHERE {_HERE} AND f.epoch = $3 AND f.attempt = $4 AND f.mode IN ('serving', 'draining')
RETURNING {FENCE_COLUMNS}
"""  # noqa: S608 (constants)

_CLOSE: Final = f"""
UPDATE shard_fences AS f SET mode = 'closed'
WHERE {_HERE} AND f.epoch = $3 AND f.attempt = $4 AND f.mode IN ('draining', 'closed')
RETURNING {FENCE_COLUMNS}
"""  # noqa: S608 (constants)

_REOPEN: Final = f"""
UPDATE shard_fences AS f SET mode = 'serving', attempt = $4
WHERE {_HERE} AND f.epoch = $3 AND f.attempt <= $4 AND f.mode IN ('serving', 'draining', 'closed')
RETURNING {FENCE_COLUMNS}
"""  # noqa: S608 (constants)

# The newest change of the shard is told by the source when all is copied; until then what an earlier life of the shard
# in this IDC has left in the fence means nothing.
_BEGIN_IMPORT: Final = f"""
INSERT INTO shard_fences AS f (region_code, shard, epoch, attempt, mode) VALUES ($1, $2, $3, $4, 'importing')
ON CONFLICT (region_code, shard) DO UPDATE
SET epoch = $3, attempt = $4, mode = 'importing', last_seq = 0, last_time = '-infinity'
WHERE f.epoch <= $3 AND f.attempt <= $4 AND f.mode IN ('closed', 'importing')
RETURNING {FENCE_COLUMNS}
"""  # noqa: S608 (constants)

_OPEN: Final = f"""
UPDATE shard_fences AS f
SET mode = 'serving', last_seq = i.last_seq, last_time = coalesce(i.last_time, '-infinity')
FROM shard_imports AS i
WHERE {_HERE} AND f.epoch = $3 AND f.attempt = $4 AND f.mode = 'importing'
    AND i.region_code = $1 AND i.shard = $2 AND i.epoch = $3 AND i.attempt = $4 AND i.is_final
RETURNING {FENCE_COLUMNS}
"""  # noqa: S608 (constants)

_BEGIN_PURGE: Final = f"""
UPDATE shard_fences AS f SET attempt = $4
WHERE {_HERE} AND f.epoch = $3 AND f.attempt <= $4 AND f.mode = 'closed'
RETURNING {FENCE_COLUMNS}
"""  # noqa: S608 (constants)

_BAR: Final = f"""
INSERT INTO shard_fences AS f (region_code, shard, epoch, attempt, mode) VALUES ($1, $2, $3, $4, 'closed')
ON CONFLICT (region_code, shard) DO UPDATE SET epoch = $3, attempt = $4, mode = 'closed'
WHERE f.epoch <= $3 AND f.attempt <= $4 AND f.mode IN ('closed', 'importing')
RETURNING {FENCE_COLUMNS}
"""  # noqa: S608 (constants)

_GET: Final = f"SELECT {FENCE_COLUMNS}, f.attempt FROM shard_fences AS f WHERE {_HERE}"  # noqa: S608 (constants)


async def begin_export(database: Database, step: MoveStep) -> FenceState:
    """Source: lets the attempt begin."""
    return await _step(database, _BEGIN_EXPORT, step, step.epoch)


async def drain(database: Database, step: MoveStep) -> FenceState:
    """Source: holds writes."""
    return await _step(database, _DRAIN, step, step.epoch)


async def close(database: Database, step: MoveStep, shard_tables: Sequence[ShardTable]) -> FenceState:
    """Source: ends the service, and then whatever of the shard's tables must end with it.

    Not in one transaction, which would hold the fence over several statements: the step is over only when all of it is
    done, and is asked for again until then. A statement of its own also sees what was committed while the fence was
    waited for.
    """
    state = await _step(database, _CLOSE, step, step.epoch)
    for table in shard_tables:
        if table.on_close:
            await database.fetch(table.on_close, step.region_code, step.shard)
    return state


async def reopen(database: Database, step: MoveStep) -> FenceState:
    """Source: serves on, after the move was called off."""
    return await _step(database, _REOPEN, step, step.epoch)


async def begin_import(database: Database, step: MoveStep) -> FenceState:
    """Target: lets the attempt begin or go on."""
    return await _step(database, _BEGIN_IMPORT, step, step.epoch + 1)


async def open_shard(database: Database, step: MoveStep) -> FenceState:
    """Target: serves, if everything is there; if it serves already, this has been done."""
    records = await database.fetch(_OPEN, step.region_code, step.shard, step.epoch + 1, step.attempt)
    if records:
        return fence_state(records[0])
    found = await database.fetch(_GET, step.region_code, step.shard, is_repeatable=True)
    if found and found[0]["mode"] == FenceMode.SERVING and found[0]["epoch"] == step.epoch + 1:
        return fence_state(found[0])
    raise refusal(step, found[0] if found else None)


async def begin_purge(database: Database, step: MoveStep) -> FenceState:
    """Source: the shard is another's, and its rows here may go."""
    return await _step(database, _BEGIN_PURGE, step, step.epoch)


async def bar(database: Database, step: MoveStep) -> FenceState:
    """Target: nothing of attempts up to this one comes in any more, not even a late beginning."""
    return await _step(database, _BAR, step, step.epoch + 1)


async def _step(database: Database, statement: str, step: MoveStep, epoch: int) -> FenceState:
    records = await database.fetch(statement, step.region_code, step.shard, epoch, step.attempt)
    if records:
        return fence_state(records[0])
    found = await database.fetch(_GET, step.region_code, step.shard, is_repeatable=True)
    raise refusal(step, found[0] if found else None)


def refusal(step: MoveStep, fence: object) -> StaleAttempt:
    """Says what the fence has instead; `fence` is a record with `mode`, `epoch` and `attempt`, or None."""
    here = (
        f"it is {fence['mode']} at epoch {fence['epoch']}, attempt {fence['attempt']}"  # pyright: ignore[reportIndexIssue]: a record
        if fence is not None
        else "it has no fence"
    )
    return StaleAttempt(
        f"shard {step.region_code}/{step.shard} does not allow this step of attempt {step.attempt} at epoch"
        f" {step.epoch}: {here}"
    )
