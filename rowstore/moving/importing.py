"""The target's side: loads the slices that the source sends, and makes each durable with the progress that tells of it.

A slice is loaded, digested and compared in one transaction, which looks at the fence once more just before it commits
(`rowstore.moving.progress`). In the first pass no key comes twice, so rows are copied straight into their table; later
ones replace what an earlier pass has brought. The digest of all rows is kept up to date by what comes and what goes:
when the source is closed, nobody waits for a scan of the whole shard. The rows themselves are never decoded here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.errors import DatabaseUnavailable, DigestMismatch, RegiongateError
from rowstore.moving import fence_steps
from rowstore.moving import progress as progresses
from rowstore.moving.clearing import delete_rows
from rowstore.moving.connections import transaction
from rowstore.moving.digest import add, digest_whole
from rowstore.moving.layout import arrange, check_target, read_layouts, warm
from rowstore.moving.loading import Incoming, Loader
from rowstore.moving.model import Head

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from rowstore.database import Connection, Database
    from rowstore.moving.connections import MoveConnections
    from rowstore.moving.model import ExportPart, ImportProgress, MoveStep
    from rowstore.moving.progress import Progress
    from rowstore.shard_tables import ShardTable


async def begin(
    database: Database,
    connections: MoveConnections,
    step: MoveStep,
    shard_tables: Sequence[ShardTable],
    *,
    is_urgent: bool,
) -> ImportProgress:
    """See `rowstore.moving.Mover.begin_import`."""
    await fence_steps.begin_import(database, step)
    async with connections.take(is_urgent=is_urgent) as connection:
        found = await progresses.find(connection, step)
        if found is None:
            await _clear(connection, step, shard_tables)
            found = await progresses.start(connection, step)
            await warm(connections, shard_tables)
    return found.told()


async def _clear(connection: Connection, step: MoveStep, shard_tables: Sequence[ShardTable]) -> None:
    """Deletes what lies here of the shard: a row that was left over would come back to life."""

    async def may_go_on() -> bool:
        # Excludes the commit of a slice. Should another call of the same attempt have come so far, it is done here.
        if not await progresses.is_importing(connection, step, "FOR NO KEY UPDATE"):
            raise await progresses.stale(connection, step)
        return await progresses.find(connection, step) is None

    await delete_rows(connection, step, shard_tables, may_go_on)


async def import_parts(
    connections: MoveConnections,
    step: MoveStep,
    parts: AsyncIterator[ExportPart],
    shard_tables: Sequence[ShardTable],
    *,
    begun: ImportProgress,
    closed_at_seq: int | None,
) -> AsyncGenerator[ImportProgress]:
    """See `rowstore.moving.Mover.import_parts`."""
    is_final = closed_at_seq is not None
    incoming = Incoming(parts)
    head = await incoming.take()
    if not isinstance(head, Head):
        raise RegiongateError("an export begins with its head")
    _check_end(head.last_seq, closed_at_seq)
    source = arrange(head.tables, shard_tables)
    if is_final:
        # Writers wait for it: one transaction for all that is left.
        async with connections.take(is_urgent=True) as connection, transaction(connection):
            check_target(source, await read_layouts(connection, shard_tables))
            progress = await _look(connection, step, head, begun)
            await progresses.lock(connection, step, progress)
            loader, end = Loader(connection, step, source, progress), None
            while end is None:
                end = await loader.load(await incoming.take(), incoming)
            _check_end(end.last_seq, closed_at_seq)
            progress.copied_seq, progress.is_final, progress.last_time = end.last_seq, True, end.last_time
            digest = add(progress.total, await digest_whole(connection, source, step.region_code, step.shard))
            await progresses.save(connection, step, progress)
        yield progress.told(is_done=True, digest=digest)
        return
    async with connections.take(is_urgent=False) as connection:
        check_target(source, await read_layouts(connection, shard_tables))
        progress = await _look(connection, step, head, begun)
    end = None
    while end is None:
        part = await incoming.take()
        async with connections.take(is_urgent=False) as connection, transaction(connection):
            await progresses.lock(connection, step, progress)
            end = await Loader(connection, step, source, progress).load(part, incoming)
            if end is not None:
                progress.copied_seq = end.last_seq
            await progresses.save(connection, step, progress)
        yield progress.told(is_done=end is not None)


async def _look(connection: Connection, step: MoveStep, head: Head, begun: ImportProgress) -> Progress:
    """How far the import is; it must still be where the export begins."""
    progress = await progresses.find(connection, step)
    if progress is None:
        raise await progresses.stale(connection, step)
    if (progress.copied_seq, progress.copied_time) != (begun.copied_seq, begun.copied_time):
        raise DatabaseUnavailable("somebody else has gone on with this import")
    progress.source_seq = max(progress.source_seq, head.last_seq)
    if progress.first_pass_seq is None:
        progress.first_pass_seq = head.last_seq
    return progress


def _check_end(last_seq: int, closed_at_seq: int | None) -> None:
    if closed_at_seq is not None and last_seq != closed_at_seq:
        raise DigestMismatch(f"the source is closed at {last_seq}, not at {closed_at_seq}")
