"""The target's side of a copy: pulls a shard from the source, and tells the controller how far it is.

What is durable is kept: a stream that breaks is begun again where the last slice has ended, from another gateway of the
source where there is one, a bounded number of times without progress; then the controller is told. A shard is imported
once at a time: a newer call takes the place of the one before, which may belong to a controller that has gone.

Law L1: before every part that is loaded, the newest law is asked whether the shard may be here. One that changes in the
middle of a copy stops it, and so does a gateway's losing touch with the law.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final

import structlog

from gateway import metrics
from gateway.export_parts import encode_digest
from gateway.move_checks import Step, step_of
from gateway.shard_moves import timed
from policy.errors import DeadlineExceeded, DigestMismatch, LimitReached, PeerUnreachable, RegiongateError, Unavailable
from regiongate.v1 import shard_service_pb2 as pb
from rowstore.moving.exporting import NEARLY
from rowstore.moving.model import ImportProgress
from runtime.telemetry.tracing import REGION_CODE, ROWS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.export_source import ExportSource
    from gateway.move_checks import MoveChecks
    from gateway.streams import StreamCall
    from rowstore.moving import Mover
    from rowstore.moving.model import ExportPart

log = structlog.get_logger("gateway.moves")

TELL_SECONDS: Final = 0.25
"""Between two messages that tell of progress."""
BEAT_SECONDS: Final = 5.0
"""Between two messages while nothing changes: the controller shall know that somebody is at it."""

MAX_FAILURES: Final = 6
"""In a row, without any progress between."""
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0

MAX_EXPORTS: Final = 10
"""That one import takes in, one after the other."""

_PASSING: Final = (Unavailable, DeadlineExceeded, LimitReached, DigestMismatch)
"""What another try may mend: a slice whose digest differs did not arrive as it was sent, and was not kept."""

_NOTHING: Final = ImportProgress(0, None, 0, 0, 0)


class _Import:
    """One call, and how far it is."""

    __slots__ = ("call", "closed_at_seq", "failures", "has_begun", "is_displaced", "latest", "move", "task")

    def __init__(self, request: pb.ImportShardRequest, call: StreamCall[pb.ImportShardResponse]) -> None:
        self.move = request.move
        self.closed_at_seq = request.closed_at_seq if request.HasField("closed_at_seq") else None
        self.call = call
        self.task = asyncio.current_task()
        self.is_displaced = False
        self.latest = _NOTHING
        self.has_begun = False
        self.failures = 0

    @property
    def step(self) -> Step:
        return Step.IMPORT if self.closed_at_seq is None else Step.FINAL_IMPORT

    def note(self, progress: ImportProgress) -> None:
        """Takes in what has become durable."""
        if self.has_begun:
            metrics.STEP_ROWS.labels(self.step.value).inc(max(0, progress.rows_copied - self.latest.rows_copied))
            metrics.STEP_BYTES.labels(self.step.value).inc(max(0, progress.bytes_copied - self.latest.bytes_copied))
        self.has_begun = True
        self.latest = progress


class ShardImports:
    """The imports of one gateway."""

    def __init__(self, idc: str, checks: MoveChecks, mover: Mover, source: ExportSource) -> None:
        self._idc = idc
        self._checks = checks
        self._mover = mover
        self._source = source
        self._running: dict[tuple[str, int], _Import] = {}

    async def run(self, request: pb.ImportShardRequest, call: StreamCall[pb.ImportShardResponse]) -> None:
        """Imports, and tells of it until it is done.

        Raises:
            AccessDenied: the law forbids the shard here, or does so now.
            TableTooOld: this gateway has not heard of the move, or cannot know the law.
            StaleAttempt: the table, a fence or the source is past this attempt.
            SchemaDiffers, DigestMismatch: see `rowstore.moving.Mover.import_parts`.
            Unavailable: the source or the database does not answer, or a newer call has taken this one's place.
        """
        this = _Import(request, call)
        move = this.move
        with timed(this.step, move):
            await self._checks.admit(this.step, move, call.context.deadline)
            self._checks.check_lawful(move.region_code, self._idc)
            began = perf_counter()
            async with self._alone(this):
                await self._follow(this)
        call.describe({REGION_CODE: move.region_code, ROWS: this.latest.rows_copied})
        log.info(
            "imported",
            step=this.step.value,
            region_code=move.region_code,
            shard=move.shard,
            epoch=move.epoch,
            attempt=move.attempt,
            rows=this.latest.rows_copied,
            bytes=this.latest.bytes_copied,
            copied_seq=this.latest.copied_seq,
            seconds=round(perf_counter() - began, 3),
        )

    @asynccontextmanager
    async def _alone(self, this: _Import) -> AsyncGenerator[None]:
        """Holds the shard's place; whoever has it is sent away and waited for."""
        shard = this.move.region_code, this.move.shard
        while (before := self._running.get(shard)) is not None and before.task is not None:
            before.is_displaced = True
            before.task.cancel()
            await asyncio.wait((before.task,))
        self._running[shard] = this
        try:
            yield
        except asyncio.CancelledError:
            if this.is_displaced:
                raise Unavailable("a newer call imports the shard") from None
            raise
        finally:
            del self._running[shard]

    async def _follow(self, this: _Import) -> None:
        """Tells of the import's progress now and then, and of its end at once."""
        pulling = asyncio.create_task(self._pull(this), name="import")
        told, told_at = _NOTHING, perf_counter()
        try:
            while not pulling.done():
                await asyncio.wait((pulling,), timeout=TELL_SECONDS)
                if pulling.done():
                    break
                if this.latest != told or perf_counter() - told_at >= BEAT_SECONDS:
                    told, told_at = this.latest, perf_counter()
                    # Done is what an export was asked for; whether the import is, its end tells.
                    await this.call.send(_message(told._replace(is_done=False, digest=None)))
            await this.call.send(_message(pulling.result()))
        finally:
            if pulling.cancel():
                await asyncio.wait((pulling,))

    async def _pull(self, this: _Import) -> ImportProgress:
        """Imports until little has changed at the source while the last export was loaded.

        The source ends an export by what it has sent, and that takes its time to arrive. While the source serves on,
        another export brings what has come meanwhile; otherwise all of that would be left for when writes are held.
        """
        state = this.latest
        for _ in range(MAX_EXPORTS):
            before = state.copied_seq
            state = await self._pull_once(this)
            if this.closed_at_seq is not None or state.copied_seq - before <= NEARLY:
                break
        return state

    async def _pull_once(self, this: _Import) -> ImportProgress:
        """Tries until one export is loaded, or too much has failed in a row."""
        while True:
            before = this.latest
            try:
                return await self._try(this)
            except _PASSING as error:
                has_moved = this.latest != before and before is not _NOTHING
                this.failures = 1 if has_moved else this.failures + 1
                if this.failures > MAX_FAILURES:
                    raise
                await self._rest(this, error)

    async def _rest(self, this: _Import, error: RegiongateError) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (this.failures - 1))
        log.warning(
            "an import is begun again",
            region_code=this.move.region_code,
            shard=this.move.shard,
            attempt=this.move.attempt,
            reason=error.reason,
            failures=this.failures,
            pause=pause,
        )
        await asyncio.sleep(pause)

    async def _try(self, this: _Import) -> ImportProgress:
        """One export, from where the import is, to its end."""
        move, is_final = this.move, this.closed_at_seq is not None
        self._checks.check_lawful(move.region_code, self._idc)
        start = await self._mover.begin_import(step_of(move), is_final=is_final)
        this.note(start)
        exported = self._source.export(move, start, is_final=is_final, traceparent=this.call.context.traceparent)
        parts = self._lawful(move.region_code, exported)
        progress = self._mover.import_parts(step_of(move), parts, begun=start, closed_at_seq=this.closed_at_seq)
        async with aclosing(exported), aclosing(parts), aclosing(progress):
            async for state in progress:
                this.note(state)
                if state.is_done:
                    return state
        raise PeerUnreachable(f"the export of {move.source_idc} has ended early")

    async def _lawful(self, region_code: str, parts: AsyncGenerator[ExportPart]) -> AsyncGenerator[ExportPart]:
        async for part in parts:
            self._checks.check_lawful(region_code, self._idc)
            yield part


def _message(progress: ImportProgress) -> pb.ImportShardResponse:
    return pb.ImportShardResponse(
        rows_copied=progress.rows_copied,
        bytes_copied=progress.bytes_copied,
        copied_seq=progress.copied_seq,
        source_seq=progress.source_seq,
        is_done=progress.is_done,
        digest=encode_digest(progress.digest) if progress.digest is not None else None,
    )
