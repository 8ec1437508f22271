"""The source's side of a copy: gives a shard's rows to a gateway of the target, and to nobody else.

Law L1, judged on both sides: no message leaves unless the newest law that is known here, by a fresh table, permits the
rows at the target.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog

from gateway import metrics
from gateway.export_parts import encode_part
from gateway.move_checks import Step, check_target, step_of
from gateway.shard_moves import timed
from gateway.values import read_time
from rowstore.moving.model import SliceEnd
from runtime.telemetry.tracing import REGION_CODE, ROWS

if TYPE_CHECKING:
    from gateway.move_checks import MoveChecks
    from gateway.streams import StreamCall
    from regiongate.v1 import shard_service_pb2 as pb
    from rowstore.moving import Mover

log = structlog.get_logger("gateway.moves")


class ShardExports:
    """The exports of one IDC."""

    def __init__(self, checks: MoveChecks, mover: Mover) -> None:
        self._checks = checks
        self._mover = mover

    async def export(self, request: pb.ExportShardRequest, call: StreamCall[pb.ExportShardResponse]) -> None:
        """Sends the parts of an export.

        Raises:
            NotOwnedHere: the asker is not the target.
            AccessDenied: the law forbids the rows there.
            StaleAttempt: the table or the fence is past this attempt.
            TableTooOld: this gateway has not heard of the move, or cannot know the law.
            DatabaseUnavailable: ask again.
            DeadlineExceeded: the asker takes nothing.
        """
        move = request.move
        step = Step.FINAL_EXPORT if request.is_final else Step.EXPORT
        check_target(move, call.context.ingress_idc)
        rows = size = 0
        with timed(step, move):
            await self._checks.admit(step, move, call.context.deadline)
            parts = self._mover.export(
                step_of(move),
                after_seq=request.after_seq,
                after_time=read_time(request.after_time) if request.HasField("after_time") else None,
                is_final=request.is_final,
            )
            async with aclosing(parts):
                async for part in parts:
                    self._checks.check_lawful(move.region_code, move.target_idc)
                    await call.send(encode_part(part))
                    if isinstance(part, bytes):
                        size += len(part)
                    elif isinstance(part, SliceEnd):
                        rows += part.digest.rows
        call.describe({REGION_CODE: move.region_code, ROWS: rows})
        metrics.STEP_ROWS.labels(step.value).inc(rows)
        metrics.STEP_BYTES.labels(step.value).inc(size)
        log.info(
            "exported",
            step=step.value,
            region_code=move.region_code,
            shard=move.shard,
            epoch=move.epoch,
            attempt=move.attempt,
            rows=rows,
            bytes=size,
        )
