"""The short steps of a move, as the controller asks for them: checked by this gateway's table, done by its database.

Each is idempotent, and leaves one line in the log that names shard, epoch and attempt, never anything of a row.
"""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from gateway import metrics
from gateway.move_checks import Step, leftover_of, step_of
from policy.errors import InvalidInput, RegiongateError
from regiongate.v1 import shard_service_pb2 as pb
from rowstore.moving.model import ShardDigest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping

    from gateway.move_checks import MoveChecks
    from rowstore.fences import FenceState
    from rowstore.moving import Mover
    from rowstore.moving.model import MoveStep

log = structlog.get_logger("gateway.moves")


class ShardMoves:
    """The steps in one IDC."""

    def __init__(self, idc: str, checks: MoveChecks, mover: Mover) -> None:
        self._idc = idc
        self._checks = checks
        self._mover = mover
        self._steps: Mapping[Step, Callable[[MoveStep], Awaitable[FenceState]]] = {
            Step.BEGIN_EXPORT: mover.begin_export,
            Step.DRAIN: mover.drain,
            Step.CLOSE: mover.close,
            Step.REOPEN: mover.reopen,
            Step.OPEN: mover.open,
        }

    async def take(self, step: Step, move: pb.MoveRef, deadline: float) -> FenceState:
        """Takes a step that is one change of the fence; returns the fence.

        Raises:
            StaleAttempt: the table or the fence is past it.
            TableTooOld: this gateway has not heard of it.
            DatabaseUnavailable: ask again.
        """
        with timed(step, move):
            await self._checks.admit(step, move, deadline)
            state = await self._steps[step](step_of(move))
        log.info(
            "a step of a move",
            step=step.value,
            region_code=move.region_code,
            shard=move.shard,
            epoch=move.epoch,
            attempt=move.attempt,
            mode=str(state.mode),
            last_seq=state.last_seq,
        )
        return state

    async def purge(self, request: pb.PurgeShardRequest, deadline: float) -> pb.PurgeShardResponse:
        """Deletes the shard's rows here and proves it; what they must be is in the record, too (law L3).

        Raises:
            InvalidInput: the request and the record do not say the same of the rows.
            DigestMismatch: the rows are not those that the new owner has; nothing was deleted.
            StaleAttempt, TableTooOld, DatabaseUnavailable: as for the other steps.
        """
        move = request.move
        with timed(Step.PURGE, move):
            record = await self._checks.admit(Step.PURGE, move, deadline)
            left = leftover_of(record, move, self._idc)
            expected = ShardDigest(left.rows, left.digest) if left is not None and left.digest else None
            told = ShardDigest(request.expected.rows, request.expected.digest)
            if request.HasField("expected") != (expected is not None) or (expected is not None and told != expected):
                raise InvalidInput("the record expects other rows to be here", field_name="expected")
            proof = await self._mover.purge(step_of(move), expected)
        metrics.STEP_ROWS.labels(Step.PURGE.value).inc(sum(proof.deleted.values()))
        log.info(
            "purged a shard",
            region_code=move.region_code,
            shard=move.shard,
            epoch=move.epoch,
            attempt=move.attempt,
            rows=sum(proof.deleted.values()),
            remaining=proof.remaining,
        )
        return pb.PurgeShardResponse(deleted=proof.deleted, remaining=proof.remaining)


@contextmanager
def timed(step: Step, move: pb.MoveRef) -> Generator[None]:
    """Measures a step, and notes why it failed."""
    began = perf_counter()
    try:
        yield
    except Exception as error:
        reason = error.reason if isinstance(error, RegiongateError) else RegiongateError.reason
        metrics.STEP_FAILURES.labels(step.value, reason).inc()
        log.warning(
            "a step of a move failed",
            step=step.value,
            region_code=move.region_code,
            shard=move.shard,
            epoch=move.epoch,
            attempt=move.attempt,
            reason=reason,
            why=str(error) if isinstance(error, RegiongateError) else type(error).__name__,
        )
        raise
    finally:
        metrics.STEP_SECONDS.labels(step.value).observe(perf_counter() - began)
