"""The face of moving: what a gateway does for the controller, and for the gateway of the other IDC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rowstore.moving import exporting, fence_steps, importing, layout, purging, sizes
from rowstore.moving.connections import MoveConnections
from rowstore.shard_tables import SHARD_TABLES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from datetime import datetime

    from rowstore.database import Database
    from rowstore.fences import FenceState
    from rowstore.model import ShardEpoch
    from rowstore.moving.model import ExportPart, ImportProgress, MoveStep, PurgeProof, ShardDigest, ShardSize
    from rowstore.shard_tables import ShardTable


class Mover:
    """Moves shards out of, and into, one IDC's database; `async with`, or `aclose` it.

    Every step is idempotent and names its attempt; one that the fence does not allow raises `StaleAttempt` and changes
    nothing. Anything may raise `DatabaseUnavailable`, and be tried again.
    """

    def __init__(self, database: Database, shard_tables: Sequence[ShardTable] = SHARD_TABLES) -> None:
        """Opens no connection yet; the steps go over `database`, the copies over connections beside it."""
        self._database = database
        self._connections = MoveConnections(database)
        self._shard_tables = shard_tables

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes its connections; what runs on them fails. `database` stays open."""
        await self._connections.close()

    # ---- at the source ----------------------------------------------------------------------------------------------

    async def begin_export(self, step: MoveStep) -> FenceState:
        """Lets an attempt begin; the shard serves on."""
        state = await fence_steps.begin_export(self._database, step)
        await layout.warm(self._connections, self._shard_tables)
        return state

    async def drain(self, step: MoveStep) -> FenceState:
        """From now on no write passes; reads do."""
        return await fence_steps.drain(self._database, step)

    async def close(self, step: MoveStep) -> FenceState:
        """From now on nothing is served, and nothing changes."""
        return await fence_steps.close(self._database, step, self._shard_tables)

    async def reopen(self, step: MoveStep) -> FenceState:
        """Serves again at the old epoch, after the move was called off; `step` has the attempt raised by that."""
        return await fence_steps.reopen(self._database, step)

    def export(
        self, step: MoveStep, *, after_seq: int, after_time: datetime | None, is_final: bool
    ) -> AsyncGenerator[ExportPart]:
        """Sends a shard's rows in slices, in rounds of ever newer sequences, until the target has nearly caught up.

        Close it (`contextlib.aclosing`) when it is left early: it reads ahead.

        Args:
            step: The attempt.
            after_seq: Only changes above this sequence.
            after_time: And from this time on, in tables that travel by time; None: all.
            is_final: Whether the source must be closed: then all of it is sent, whole tables included.

        Raises:
            StaleAttempt: the fence is not (any more) as the attempt needs it.
            DatabaseUnavailable: also when a table was changed meanwhile; the next export sees the change.
        """
        return exporting.export(
            self._connections,
            step,
            self._shard_tables,
            after_seq=after_seq,
            after_time=after_time,
            is_final=is_final,
        )

    async def digest(self, step: MoveStep) -> ShardDigest:
        """The digest of all rows of the shard that lie here, read in one snapshot."""
        return await purging.digest_shard(self._connections, step, self._shard_tables)

    # ---- at the target ----------------------------------------------------------------------------------------------

    async def begin_import(self, step: MoveStep, *, is_final: bool = False) -> ImportProgress:
        """Lets an attempt begin or go on; a new one first deletes whatever lies here of the shard.

        In the last round (`is_final`) it waits for no bulk copy.
        """
        return await importing.begin(self._database, self._connections, step, self._shard_tables, is_urgent=is_final)

    def import_parts(
        self,
        step: MoveStep,
        parts: AsyncIterator[ExportPart],
        *,
        begun: ImportProgress,
        closed_at_seq: int | None,
    ) -> AsyncGenerator[ImportProgress]:
        """Loads what an export sends; tells the progress after each slice that has become durable.

        Args:
            step: The attempt.
            parts: The export.
            begun: What `begin_import` has told, and the export begins at.
            closed_at_seq: The source's last sequence, when it is closed and the export is final; otherwise None.

        Raises:
            SchemaDiffers: a column of the source is missing here, or has another type; nothing was copied.
            DigestMismatch: a slice did not arrive as it was sent; it was not kept.
            StaleAttempt: another attempt has begun; nothing of this one is kept from then on.
            DatabaseUnavailable: what was told is kept; go on from there. Also when somebody else has gone on with it.
        """
        return importing.import_parts(
            self._connections, step, parts, self._shard_tables, begun=begun, closed_at_seq=closed_at_seq
        )

    async def open(self, step: MoveStep) -> FenceState:
        """Serves the shard at the next epoch, once its import is final."""
        return await fence_steps.open_shard(self._database, step)

    # ---- at either --------------------------------------------------------------------------------------------------

    async def purge(self, step: MoveStep, expected: ShardDigest | None) -> PurgeProof:
        """Deletes the shard's rows here, and counts what is left.

        Args:
            step: The attempt.
            expected: What the new owner has opened with, at the source. None at the target of a move that was called
                off; its fence is made if there is none, so that a late `begin_import` is refused.

        Raises:
            DigestMismatch: the rows here are not those that the new owner has; nothing was deleted.
        """
        return await purging.purge(self._database, self._connections, step, self._shard_tables, expected)

    async def measure(self, shards: Sequence[ShardEpoch]) -> list[ShardSize]:
        """How much there is of some shards, in their order."""
        return await sizes.measure(self._connections, shards)
