"""The way of a shard from one IDC to another: a table of legal steps, and a pure function that takes them.

    serving --start--> copying --copied--> draining --drained--> closing --switched--> opening --opened--> purging
       ^                  |                   |                    |                                          |
       |                  +----- called off --+--------------------+----> aborting --reopened--> purging      |
       +------------------------------------------- purged ---------------------------------------------------+

The switch is the point of no return: with it the target owns the shard at the next epoch, and all that follows can only
go forward. An event that the table does not have raises `IllegalStep` and changes nothing.

Attempts: each start, and each calling off, raises the shard's attempt number before anything is asked of an IDC. The
fences keep the highest that they have seen, so a step that was sent for an earlier attempt, and arrives late, changes
nothing (law L2).
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

from policy.model import Phase
from policy.records import Leftover

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.records import ShardRecord


class MoveEvent(Enum):
    """What has become true of a move."""

    START = "start"
    COPIED = "copied"
    DRAINED = "drained"
    SWITCHED = "switched"
    OPENED = "opened"
    PURGED = "purged"
    CALLED_OFF = "called off"
    REOPENED = "reopened"


STEPS: Mapping[tuple[Phase, MoveEvent], Phase] = MappingProxyType(
    {
        (Phase.SERVING, MoveEvent.START): Phase.COPYING,
        (Phase.PURGING, MoveEvent.START): Phase.COPYING,
        (Phase.COPYING, MoveEvent.COPIED): Phase.DRAINING,
        (Phase.DRAINING, MoveEvent.DRAINED): Phase.CLOSING,
        (Phase.CLOSING, MoveEvent.SWITCHED): Phase.OPENING,
        (Phase.OPENING, MoveEvent.OPENED): Phase.PURGING,
        (Phase.PURGING, MoveEvent.PURGED): Phase.SERVING,
        (Phase.COPYING, MoveEvent.CALLED_OFF): Phase.ABORTING,
        (Phase.DRAINING, MoveEvent.CALLED_OFF): Phase.ABORTING,
        (Phase.CLOSING, MoveEvent.CALLED_OFF): Phase.ABORTING,
        (Phase.ABORTING, MoveEvent.REOPENED): Phase.PURGING,
    }
)
"""Where each event leads; a shard without anything to purge serves instead."""

BEFORE_SWITCH = frozenset({Phase.COPYING, Phase.DRAINING, Phase.CLOSING})
"""Phases in which a move can still be called off."""
UNDER_WAY = BEFORE_SWITCH | {Phase.OPENING, Phase.ABORTING, Phase.PURGING}
"""Phases in which something remains to be done."""
READABLE = frozenset({Phase.SERVING, Phase.COPYING, Phase.DRAINING, Phase.ABORTING, Phase.PURGING})
"""Phases in which the owner's fence may let reads pass."""
WRITABLE = READABLE - {Phase.DRAINING}
"""Phases in which the owner's fence may let writes pass."""


class IllegalStep(ValueError):
    """The table has no such step; nothing has changed."""


def start(record: ShardRecord, target: str, rollout: str, traceparent: str) -> ShardRecord:
    """A new attempt to move the shard to `target`; rows that lie there still are deleted by the import itself."""
    phase = _next(record, MoveEvent.START)
    if target == record.owner:
        raise IllegalStep(f"{target} owns the shard already")
    return replace(
        record,
        phase=phase,
        target=target,
        rollout=rollout,
        traceparent=traceparent,
        attempt=record.attempt + 1,
        leftovers=tuple(left for left in record.leftovers if left.idc != target),
    )


def advance(record: ShardRecord, event: MoveEvent) -> ShardRecord:
    """The record after COPIED, DRAINED, OPENED, CALLED_OFF or REOPENED."""
    phase = _next(record, event)
    if event is MoveEvent.CALLED_OFF:
        return replace(record, phase=phase, attempt=record.attempt + 1)
    if event is MoveEvent.REOPENED:
        remains = Leftover(record.target, record.epoch, record.attempt, record.rollout)
        return _at_rest(replace(record, target="", leftovers=(*record.leftovers, remains)))
    if event is MoveEvent.OPENED:
        return _at_rest(record)
    if event in (MoveEvent.COPIED, MoveEvent.DRAINED):
        return replace(record, phase=phase)
    raise IllegalStep(f"{event.value} needs more than the record: see `start`, `switch` and `purge`")


def switch(record: ShardRecord, rows: int, digest: str) -> ShardRecord:
    """The target owns the shard, at the next epoch; `rows` and `digest` are what it will open with."""
    phase = _next(record, MoveEvent.SWITCHED)
    remains = Leftover(record.owner, record.epoch, record.attempt, record.rollout, rows, digest)
    return replace(
        record,
        owner=record.target,
        epoch=record.epoch + 1,
        phase=phase,
        target="",
        leftovers=(*record.leftovers, remains),
    )


def purge(record: ShardRecord, idc: str) -> ShardRecord:
    """Nothing of the shard is left in that IDC."""
    _next(record, MoveEvent.PURGED)
    return _at_rest(replace(record, leftovers=tuple(left for left in record.leftovers if left.idc != idc)))


def _next(record: ShardRecord, event: MoveEvent) -> Phase:
    try:
        return STEPS[Phase(record.phase), event]
    except (KeyError, ValueError):
        raise IllegalStep(f"a shard that is {record.phase} cannot be {event.value}") from None


def _at_rest(record: ShardRecord) -> ShardRecord:
    return replace(record, phase=Phase.PURGING if record.leftovers else Phase.SERVING)
