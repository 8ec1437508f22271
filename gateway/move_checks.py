"""Whether a step of a move may be taken here: by this gateway's own table, before anything is asked of the database.

A step is taken only when the shard's record names this very move, in a phase in which the step makes sense, and gives
this IDC the part that it is asked to play. A caller that is ahead of this gateway is waited for a while; one that is
behind learns so at once. These are the first lines of defence: the fences keep the attempts themselves (law L2).

Law L1: rows go to the target, and are taken in there, only while the newest law permits it, which takes a table that is
known to be fresh. Opening asks for no law: the owner has been switched by then, and a refusal would keep the rows where
they are for ever, whatever the law says; what is open can be moved on.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Final

from gateway.requests import check_region, table_of
from policy.errors import AccessDenied, InvalidInput, NotOwnedHere, StaleAttempt, TableTooOld
from policy.model import Phase
from policy.move import BEFORE_SWITCH
from rowstore.moving.model import MoveStep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.hold import FollowerLike
    from policy.compile import Policy
    from policy.records import Leftover, ShardRecord
    from regiongate.v1 import shard_service_pb2

_WAIT_FOR_TABLE: Final = 5.0
"""Seconds that a record may take to arrive here after the controller has written it."""


class Step(Enum):
    """What a gateway is asked to do for a move; the value names it in logs and metrics."""

    BEGIN_EXPORT = "begin_export"
    EXPORT = "export"
    FINAL_EXPORT = "final_export"
    DRAIN = "drain"
    CLOSE = "close"
    REOPEN = "reopen"
    IMPORT = "import"
    FINAL_IMPORT = "final_import"
    OPEN = "open"
    PURGE = "purge"


PHASES: Final[Mapping[Step, frozenset[Phase]]] = {
    Step.BEGIN_EXPORT: BEFORE_SWITCH,
    Step.EXPORT: BEFORE_SWITCH,
    Step.FINAL_EXPORT: frozenset({Phase.CLOSING}),
    Step.DRAIN: frozenset({Phase.DRAINING, Phase.CLOSING}),
    Step.CLOSE: frozenset({Phase.CLOSING}),
    Step.REOPEN: frozenset({Phase.ABORTING}),
    Step.IMPORT: BEFORE_SWITCH,
    Step.FINAL_IMPORT: frozenset({Phase.CLOSING}),
    Step.OPEN: frozenset({Phase.OPENING, Phase.PURGING}),
    Step.PURGE: frozenset({Phase.PURGING}),
}
"""The phases of the record in which a step is taken."""

AT_TARGET: Final = frozenset({Step.IMPORT, Step.FINAL_IMPORT, Step.OPEN})
"""Steps that the target takes; the others are the source's, but for the purge, which is both's."""


class MoveChecks:
    """The checks of one gateway."""

    def __init__(self, idc: str, view: FollowerLike) -> None:
        self._idc = idc
        self._view = view

    async def admit(self, step: Step, move: shard_service_pb2.MoveRef, deadline: float) -> ShardRecord:
        """Waits for a table whose record asks for the step; returns the record.

        Raises:
            InvalidInput: the move is not this IDC's.
            StaleAttempt: the record has gone past the step.
            TableTooOld: the record has not come to it in a reasonable time; another gateway may know more.
        """
        self._check_part(step, move)
        now = asyncio.get_running_loop().time()
        # Half of the caller's time at most, so that the refusal still reaches it.
        until = now + min((deadline - now) / 2, _WAIT_FOR_TABLE)
        while True:
            table = table_of(self._view)
            record = table.record(move.region_code, move.shard)
            if record is not None:
                if names(record, step, move, self._idc):
                    return record
                if has_passed(record, step, move):
                    raise StaleAttempt(f"shard {move.shard} of {move.region_code} is past attempt {move.attempt}")
            if not await self._view.wait_beyond(table.store_revision, until):
                raise TableTooOld(f"shard {move.shard} of {move.region_code} is not to {step.value} as far as is known")

    def _check_part(self, step: Step, move: shard_service_pb2.MoveRef) -> None:
        check_region(move.region_code)
        if step is Step.PURGE:
            parts = (move.source_idc, move.target_idc)
        else:
            parts = (move.target_idc if step in AT_TARGET else move.source_idc,)
        if self._idc not in parts or move.source_idc == move.target_idc:
            raise InvalidInput(f"this move is no matter of {self._idc}", field_name="move")

    def check_lawful(self, region_code: str, idc: str) -> None:
        """Whether the newest law permits rows of the RegionCode in the IDC (law L1).

        Raises:
            TableTooOld: this gateway cannot know.
            AccessDenied: it does not; names rule and revision.
            UnknownRegion: no rule covers the RegionCode.
        """
        if not self._view.is_fresh:
            raise TableTooOld("this gateway has lost touch with the policy store and lets no row cross")
        check_residency(table_of(self._view).policy, region_code, idc)


def check_residency(policy: Policy, region_code: str, idc: str) -> None:
    """Raises `AccessDenied` where the residency rule does not permit the RegionCode in the IDC (law L1)."""
    residency = policy.residency(region_code)
    if policy.idcs.get(idc) not in residency.jurisdictions:
        raise AccessDenied(
            f"residency rule {residency.rule} does not permit {region_code} in {idc}",
            rule=residency.rule,
            policy_revision=policy.revision,
        )


def check_target(move: shard_service_pb2.MoveRef, ingress_idc: str) -> None:
    """Raises `NotOwnedHere` unless the asker is a gateway of the move's target: nobody else is given a shard's rows."""
    if not ingress_idc or ingress_idc != move.target_idc:
        raise NotOwnedHere("the rows of a shard go to the target of its move only", owner_idc=move.target_idc)


def names(record: ShardRecord, step: Step, move: shard_service_pb2.MoveRef, idc: str) -> bool:
    """Whether the record asks for this very step of this very move, in this IDC."""
    if record.phase not in PHASES[step]:
        return False
    if step is Step.PURGE:
        return record.owner != idc and leftover_of(record, move, idc) is not None
    if record.attempt != move.attempt:
        return False
    if step is Step.OPEN:
        is_switched = (record.owner, record.epoch) == (move.target_idc, move.epoch + 1)
        return is_switched and leftover_of(record, move, move.source_idc) is not None
    return (record.owner, record.target, record.epoch) == (move.source_idc, move.target_idc, move.epoch)


def leftover_of(record: ShardRecord, move: shard_service_pb2.MoveRef, idc: str) -> Leftover | None:
    """What the record says is to be deleted in the IDC for this move."""
    wanted = (idc, move.epoch, move.attempt)
    return next((left for left in record.leftovers if (left.idc, left.epoch, left.attempt) == wanted), None)


def has_passed(record: ShardRecord, step: Step, move: shard_service_pb2.MoveRef) -> bool:
    """Whether the record can never ask for the step any more: attempts and epochs only go up."""
    own_epoch = move.epoch + (step in (Step.OPEN, Step.PURGE))
    return record.attempt > move.attempt or record.epoch > own_epoch


def step_of(move: shard_service_pb2.MoveRef) -> MoveStep:
    """The step as the row store takes it."""
    return MoveStep(move.region_code, move.shard, move.epoch, move.attempt)
