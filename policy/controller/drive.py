"""Drives one shard's move: asks the two IDCs for the step of its phase, and writes down what has become true.

Everything that a driver knows is in the shard's record, so another controller's driver goes on from any point. A phase
is entered in etcd first and acted on after; each write compares the election and the record, so a driver that was
paused, or whose move was called off, changes nothing, and the attempt in every call keeps the IDCs from obeying it.

How failures are met:
- copying: waited for and tried again; the source serves all the while.
- draining, closing: writes are being held, so the move is called off when the time for that is up, or when an IDC
  refuses; it is tried again later.
- opening, aborting, purging: tried again until done.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog

from policy import move
from policy.audit.entry import Fact
from policy.controller.ledger import Ledger, Overtaken, now
from policy.controller.peers import PASSING, StepFailed
from policy.metrics import MOVE_ENDS, MOVE_STALL_SECONDS
from policy.model import Phase
from policy.move import MoveEvent
from policy.records import SwitchRecord
from regiongate.v1 import shard_service_pb2 as pb
from runtime.etcd import EtcdUnavailable, put_op
from runtime.telemetry.tracing import REGION_CODE, set_failed, traceparent_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

    from policy.audit.chain import AuditChain
    from policy.controller.moves import Wanted
    from policy.controller.peers import PeerCalls
    from policy.follower import Follower
    from policy.intent import Shard
    from policy.records import Keys, Leftover, MoveRecord, ShardRecord
    from runtime.etcd import EtcdClient, Leadership
    from runtime.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 10.0
LONGEST_URGENT_PAUSE: Final = 0.5
"""While writes are held."""
TELL_EVERY: Final = 0.5
"""Seconds between two notes of how far a copy is."""
URGENT: Final = frozenset({Phase.DRAINING, Phase.CLOSING, Phase.OPENING, Phase.ABORTING})
"""Phases in which writes are held."""


@dataclass(frozen=True, slots=True)
class DriveSettings:
    """How patient a driver is."""

    stall_limit: timedelta = timedelta(seconds=3)
    """How long writes may be held before a move is called off."""
    step_timeout: timedelta = timedelta(seconds=2)
    """For one step that should be short."""
    import_silence: timedelta = timedelta(seconds=30)
    """How long an import may tell nothing."""
    purge_timeout: timedelta = timedelta(seconds=120)
    """For the deletion of a shard's rows, however many."""


@dataclass(frozen=True, slots=True)
class DriveContext:
    """What all drivers of one leadership share."""

    client: EtcdClient
    keys: Keys
    leadership: Leadership
    follower: Follower
    peers: PeerCalls
    audit: AuditChain
    tracing: Tracing
    wanted: Callable[[Shard], Wanted | None]
    """What some rollout wants of the shard now."""
    settings: DriveSettings


class MoveDriver:
    """Brings one shard to rest."""

    def __init__(self, context: DriveContext, shard: Shard) -> None:
        self._context = context
        self._shard = shard
        self._ledger = Ledger(
            shard,
            context.client,
            context.follower,
            keys=context.keys,
            election=context.leadership.compare,
            audit=context.audit,
        )
        self._turns: dict[Phase, Callable[[ShardRecord], Awaitable[None]]] = {
            Phase.COPYING: self._copy,
            Phase.DRAINING: self._drain,
            Phase.CLOSING: self._close,
            Phase.OPENING: self._open,
            Phase.ABORTING: self._reopen,
            Phase.PURGING: self._purge,
        }
        self._trace = ""
        self._held_since: float | None = None
        self._told = 0.0
        self._failures = 0
        self.trouble = ""
        """Why it does not get on; empty when it does."""
        self.was_called_off = False
        """Whether an attempt has failed, so that the next one should wait."""

    async def run(self) -> None:
        """Returns when nothing is left to do for the shard, as far as this process knows."""
        pause = FIRST_PAUSE
        while (record := self._ledger.look()) is not None:
            phase = Phase(record.phase)
            try:
                await self._turn(phase, record)
            except Overtaken:
                await self._wait_newer()
            except (StepFailed, EtcdUnavailable) as error:
                self._failures += 1
                await self._note_trouble(record, error)
                if phase in (Phase.DRAINING, Phase.CLOSING) and self._must_give_up(error):
                    await self._call_off(record, str(error))
                    continue
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_URGENT_PAUSE if phase in URGENT else LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                self.trouble = ""

    async def _wait_newer(self) -> None:
        """Waits a short while for the record that has overtaken ours."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_URGENT_PAUSE):
                await self._ledger.until_overtaken()

    async def _turn(self, phase: Phase, record: ShardRecord) -> None:
        attributes = {
            REGION_CODE: self._shard[0],
            "regiongate.shard": self._shard[1],
            "regiongate.attempt": record.attempt,
            "regiongate.owner": record.owner,
            "regiongate.target": record.target,
        }
        span = self._context.tracing.start(f"move.{phase}", traceparent=record.traceparent, attributes=attributes)
        self._trace = traceparent_of(span, record.traceparent)
        try:
            await self._turns[phase](record)
        except StepFailed as error:
            set_failed(span, error.status)
            raise
        finally:
            if span is not None:
                span.end()

    # ---- the phases -------------------------------------------------------------------------------------------------

    async def _copy(self, record: ShardRecord) -> None:
        """Copies until the target is nearly where the source is; ends early when the move is called off."""
        copying = asyncio.create_task(self._copy_all(record))
        overtaken = asyncio.create_task(self._ledger.until_overtaken())
        try:
            await asyncio.wait((copying, overtaken), return_when=asyncio.FIRST_COMPLETED)
            if not copying.done():
                raise Overtaken
            copying.result()
        finally:
            for task in (copying, overtaken):
                task.cancel()
            await asyncio.wait((copying, overtaken))
        self._held_since = time.monotonic()
        await self._ledger.write(record, move.advance(record, MoveEvent.COPIED), drain_time=now(), note="")

    async def _copy_all(self, record: ShardRecord) -> None:
        reference = self._reference(record)
        await self._step(record.owner, "BeginExport", pb.BeginExportRequest(move=reference))
        await self._import(record, pb.ImportShardRequest(move=reference))

    async def _drain(self, record: ShardRecord) -> None:
        self._held_since = self._held_since or time.monotonic()
        request = pb.DrainShardRequest(move=self._reference(record))
        await self._step(record.owner, "DrainShard", request, timeout=self._time_left())
        await self._ledger.write(record, move.advance(record, MoveEvent.DRAINED))

    async def _close(self, record: ShardRecord) -> None:
        """Closes the source, lets the last changes follow, and switches the owner: the point of no return."""
        self._held_since = self._held_since or time.monotonic()
        reference = self._reference(record)
        closing = pb.CloseShardRequest(move=reference)
        closed = await self._step(record.owner, "CloseShard", closing, timeout=self._time_left())
        request = pb.ImportShardRequest(move=reference, closed_at_seq=closed.fence.last_seq)
        last = await self._import(record, request, timeout=self._time_left())
        await self._switch(record, last.digest.rows, last.digest.digest)

    async def _switch(self, record: ShardRecord, rows: int, digest: str) -> None:
        wanted = self._context.wanted(self._shard)
        if wanted is None or wanted.target != record.target:
            raise Overtaken
        switched = move.switch(replace(record, rollout=wanted.rollout.record.rollout), rows, digest)
        mark = put_op(self._context.keys.last_switch, SwitchRecord(*self._shard, switched.epoch).encode())
        # While the rollout wants it, no newer plan, cancellation or law has come between.
        await self._ledger.write_guarded(record, switched, wanted, (mark,), digest=digest, rows=rows, switch_time=now())

    async def _open(self, record: ShardRecord) -> None:
        left = record.leftovers[-1]
        await self._step(
            record.owner, "OpenShard", pb.OpenShardRequest(move=self._left_reference(left, target=record.owner))
        )
        stall = (
            time.monotonic() - self._held_since if self._held_since is not None else await self._stall_by_clock(record)
        )
        self._held_since = None
        MOVE_STALL_SECONDS.observe(stall)
        stall_ms = round(stall * 1000, 1)
        await self._ledger.write(record, move.advance(record, MoveEvent.OPENED), stall_ms=stall_ms, note="")

    async def _reopen(self, record: ShardRecord) -> None:
        """The source serves again; what the target has copied goes."""
        await self._step(record.owner, "ReopenShard", pb.ReopenShardRequest(move=self._reference(record)))
        self._held_since = None
        self.was_called_off = True
        await self._ledger.write(record, move.advance(record, MoveEvent.REOPENED))
        MOVE_ENDS.labels("called off").inc()

    async def _purge(self, record: ShardRecord) -> None:
        """Deletes what lies elsewhere, in each IDC that answers; one that does not holds up no other."""
        failure: StepFailed | None = None
        for left in record.leftovers:
            try:
                request = pb.PurgeShardRequest(move=self._left_reference(left, target=record.owner))
                if left.digest:
                    request.expected.CopyFrom(pb.ShardDigest(rows=left.rows, digest=left.digest))
                proof = await self._step(
                    left.idc, "PurgeShard", request, timeout=self._context.settings.purge_timeout.total_seconds()
                )
                if proof.remaining:
                    raise StepFailed(left.idc, "REMAINS", f"{proof.remaining} rows are left")
            except StepFailed as error:
                failure = error
                continue
            await self._end(record, left, dict(proof.deleted))
            return
        if failure is not None:
            raise failure

    async def _end(self, record: ShardRecord, left: Leftover, deleted: dict[str, int]) -> None:
        """Writes down, and into the audit trail, that nothing of the shard is left in an IDC."""
        is_moved = bool(left.digest)
        movement = replace(
            await self._ledger.movement_of(left, record.owner),
            phase="done" if is_moved else "called off",
            end_time=now(),
        )
        content = {
            "outcome": "moved" if is_moved else "called off",
            "region_code": self._shard[0],
            "shard": self._shard[1],
            "purged_idc": left.idc,
            "owner": record.owner,
            "epoch": record.epoch,
            "attempt": left.attempt,
            "rollout": left.rollout,
            "rows": left.rows,
            "digest": left.digest,
            "deleted": deleted,
            "start_time": movement.start_time,
            "switch_time": movement.switch_time,
            "end_time": movement.end_time,
            "stall_ms": str(movement.stall_ms),
        }
        await self._ledger.end(move.purge(record, left.idc), movement, Fact("move", content))
        if is_moved:
            MOVE_ENDS.labels("done").inc()
        log.info(
            "moved" if is_moved else "called off", region_code=self._shard[0], shard=self._shard[1], purged=left.idc
        )

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _peers(self, idc: str) -> tuple[str, ...]:
        """The IDC's gateways, another one first after each failure: the one before may be frozen."""
        live = [record.peer_address for record in self._context.follower.gateways.get(idc, ())]
        first = self._failures % len(live) if live else 0
        return (*live[first:], *live[:first])

    async def _step(self, idc: str, name: str, request: Message, *, timeout: float | None = None) -> Any:  # noqa: ANN401 (the answer that belongs to the method)
        timeout = timeout if timeout is not None else self._context.settings.step_timeout.total_seconds()
        return await self._context.peers.step(
            idc, self._peers(idc), name, request, timeout=timeout, traceparent=self._trace
        )

    async def _import(
        self, record: ShardRecord, request: pb.ImportShardRequest, *, timeout: float | None = None
    ) -> pb.ImportShardResponse:
        """Follows an import to its end, and tells now and then how far it is."""
        began, before = time.monotonic(), (await self._ledger.movement(record)).rows
        idle = self._context.settings.import_silence.total_seconds()
        try:
            async with (
                asyncio.timeout(timeout),
                self._context.peers.importing(
                    record.target, self._peers(record.target), request, idle=idle, traceparent=self._trace
                ) as answers,
            ):
                async for answer in answers:
                    if answer.is_done:
                        await self._tell(record, answer, answer.rows_copied - before, began)
                        return answer
                    self.trouble = ""
                    if time.monotonic() - self._told > TELL_EVERY:
                        await self._tell(record, answer, answer.rows_copied - before, began)
        except TimeoutError:
            raise StepFailed(record.target, "DEADLINE_EXCEEDED", "the last changes take too long") from None
        raise StepFailed(record.target, "UNAVAILABLE", "the import ended without its last word")

    async def _tell(self, record: ShardRecord, answer: pb.ImportShardResponse, copied: int, began: float) -> None:
        """Writes down how far a copy is, and how fast since it `began`; in a hurry, nothing is."""
        if record.phase != Phase.COPYING:
            return
        self._told = time.monotonic()
        await self._ledger.tell(
            record,
            rows=answer.rows_copied,
            bytes=answer.bytes_copied,
            remaining=max(0, answer.source_seq - answer.copied_seq),
            rows_per_second=round(max(0, copied) / max(self._told - began, 1e-3), 1),
            note="",
        )

    def _reference(self, record: ShardRecord) -> pb.MoveRef:
        return pb.MoveRef(
            region_code=self._shard[0],
            shard=self._shard[1],
            epoch=record.epoch,
            attempt=record.attempt,
            source_idc=record.owner,
            target_idc=record.target,
        )

    def _left_reference(self, left: Leftover, *, target: str) -> pb.MoveRef:
        """For what follows a switch, or a move that was called off: then the leftover lies at the target."""
        source, target = (left.idc, target) if left.digest else (target, left.idc)
        return pb.MoveRef(
            region_code=self._shard[0],
            shard=self._shard[1],
            epoch=left.epoch,
            attempt=left.attempt,
            source_idc=source,
            target_idc=target,
        )

    # ---- giving up --------------------------------------------------------------------------------------------------

    def _time_left(self) -> float:
        """Seconds until writes have been held for so long that the move must be called off; never nothing."""
        limit = self._context.settings.stall_limit.total_seconds()
        return max(0.1, limit - (time.monotonic() - (self._held_since or time.monotonic())))

    def _must_give_up(self, error: Exception) -> bool:
        if isinstance(error, StepFailed) and error.status not in PASSING:
            return True
        limit = self._context.settings.stall_limit.total_seconds()
        return time.monotonic() - (self._held_since or time.monotonic()) >= limit

    async def _call_off(self, record: ShardRecord, reason: str) -> None:
        try:
            await self._ledger.write(record, move.advance(record, MoveEvent.CALLED_OFF), note=reason)
        except (Overtaken, EtcdUnavailable) as error:
            log.warning("not called off yet", reason=str(error))
            await self._wait_newer()

    async def _note_trouble(self, record: ShardRecord, error: Exception) -> None:
        """Tells what the move waits for: in the log, in the rollout's sentence, and in its own record."""
        why = f"{record.phase}: {error}"
        if why == self.trouble:
            return
        self.trouble = why
        log.warning("a move does not get on", region_code=self._shard[0], shard=self._shard[1], why=why)
        if record.phase != Phase.ABORTING:  # there it says why the move was called off
            with suppress(EtcdUnavailable):
                await self._ledger.tell(record, note=why)

    async def _stall_by_clock(self, record: ShardRecord) -> float:
        """For a driver that has not seen the drain itself."""
        movement: MoveRecord = await self._ledger.movement(record)
        if not movement.drain_time:
            return 0.0
        return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(movement.drain_time)).total_seconds())
