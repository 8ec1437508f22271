"""Deletes a shard's rows where they may not lie any more, and proves it.

At the source only after its rows were compared with what the new owner has opened with. That they were equal is
remembered, so that a purge which was cut short, and finds fewer rows, may go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policy.errors import DigestMismatch
from rowstore.moving import fence_steps
from rowstore.moving.clearing import count_rows, delete_rows
from rowstore.moving.connections import SNAPSHOT, fetch_any, run, transaction
from rowstore.moving.digest import digest_all
from rowstore.moving.layout import read_layouts
from rowstore.moving.model import PurgeProof, ShardDigest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rowstore.database import Connection, Database
    from rowstore.moving.connections import MoveConnections
    from rowstore.moving.model import MoveStep
    from rowstore.shard_tables import ShardTable

_FENCE: Final = "SELECT mode, epoch, attempt FROM shard_fences WHERE region_code = $1 AND shard = $2"

_HOLD_CLOSED: Final = f"{_FENCE} AND epoch = $3 AND attempt = $4 AND mode = 'closed' FOR SHARE"

_FORGET_IMPORT: Final = "DELETE FROM shard_imports WHERE region_code = $1 AND shard = $2 AND attempt <= $3"

_VERIFIED: Final = "SELECT rows, digest FROM shard_purges WHERE region_code = $1 AND shard = $2 AND epoch = $3"

_REMEMBER: Final = """
INSERT INTO shard_purges (region_code, shard, epoch, rows, digest) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (region_code, shard) DO UPDATE
SET epoch = excluded.epoch, rows = excluded.rows, digest = excluded.digest
"""


async def purge(
    database: Database,
    connections: MoveConnections,
    step: MoveStep,
    shard_tables: Sequence[ShardTable],
    expected: ShardDigest | None,
) -> PurgeProof:
    """See `rowstore.moving.Mover.purge`."""
    begin = fence_steps.bar if expected is None else fence_steps.begin_purge
    fence = await begin(database, step)
    async with connections.take(is_urgent=False) as connection:
        if expected is not None:
            await _verify(connection, step, shard_tables, expected)
        await run(connection, _FORGET_IMPORT, step.region_code, step.shard, step.attempt)

        async def may_go_on() -> bool:
            await _hold_closed(connection, step, fence.epoch)
            return True

        deleted = await delete_rows(connection, step, shard_tables, may_go_on)
        return PurgeProof(deleted, await count_rows(connection, step, shard_tables))


async def digest_shard(connections: MoveConnections, step: MoveStep, shard_tables: Sequence[ShardTable]) -> ShardDigest:
    """See `rowstore.moving.Mover.digest`."""
    async with connections.take(is_urgent=False) as connection:
        return await _digest(connection, step, shard_tables)


async def _digest(connection: Connection, step: MoveStep, shard_tables: Sequence[ShardTable]) -> ShardDigest:
    async with transaction(connection, SNAPSHOT):
        layouts = await read_layouts(connection, shard_tables)
        return await digest_all(connection, layouts, step.region_code, step.shard)


async def _verify(
    connection: Connection, step: MoveStep, shard_tables: Sequence[ShardTable], expected: ShardDigest
) -> None:
    """Raises `DigestMismatch` unless the rows here are, or were before they began to be deleted, as expected."""
    name = step.region_code, step.shard, step.epoch
    verified = await fetch_any(connection, _VERIFIED, *name)
    if verified is not None and ShardDigest(*verified) == expected:
        return
    found = await _digest(connection, step, shard_tables)
    if found != expected:
        raise DigestMismatch(
            f"shard {step.region_code}/{step.shard} has {found.rows} rows with digest {found.digest} here, and"
            f" {expected.rows} with {expected.digest} at its owner: nothing was deleted"
        )
    async with transaction(connection):
        await _hold_closed(connection, step, step.epoch)
        await run(connection, _REMEMBER, *name, *expected)


async def _hold_closed(connection: Connection, step: MoveStep, epoch: int) -> None:
    """Keeps the fence closed until the transaction ends; raises `StaleAttempt`."""
    name = step.region_code, step.shard
    if await fetch_any(connection, _HOLD_CLOSED, *name, epoch, step.attempt) is None:
        raise fence_steps.refusal(step, await fetch_any(connection, _FENCE, *name))
