"""Which shards are to move now, and which moves are to be called off: pure functions of plans and records.

A move is wanted while a rollout that has not ended has it in its plan; of several rollouts the newest counts. A move
that is under way and not wanted is called off before its switch; after it, it goes on to its end. What the law demands
starts first, and is wanted even while its rollout is being cancelled.

A move that is in trouble holds up no other: it takes no place among those that may be under way between two IDCs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from policy.model import Phase
from policy.move import BEFORE_SWITCH, UNDER_WAY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from policy.cluster import KnownRollout, KnownShard
    from policy.intent import Shard
    from policy.records import PlannedMove, PlanRecord, RolloutRecord

MOST_IN_TROUBLE = 8
"""Times the limit: so many moves between two IDCs may be under way, those in trouble included."""


class Wanted(NamedTuple):
    """Where a shard is to go, and by whose order."""

    target: str
    rollout: KnownRollout
    required_by_law: bool
    may_start: bool
    """False while the rollout is paused: what is under way goes on, nothing begins."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many moves may be under way at a time."""

    per_pair: int = 1
    """From one IDC to one other."""
    per_idc: int = 4
    """That an IDC takes part in, as source or target."""


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a new attempt to move a shard."""

    shard: Shard
    target: str
    rollout: KnownRollout
    required_by_law: bool


@dataclass(frozen=True, slots=True)
class CallOff:
    """Call a move off before its switch."""

    shard: Shard
    reason: str


def wanted_moves(rollouts: Iterable[KnownRollout], plans: Mapping[str, PlanRecord]) -> dict[Shard, Wanted]:
    """Every move that some rollout wants; `rollouts` come oldest first."""
    wanted: dict[Shard, Wanted] = {}
    for rollout in rollouts:
        for move in _moves(rollout, plans):
            if (order := _wanted(rollout, move)) is not None:
                wanted[move.region_code, move.shard] = order
    return wanted


def wanted_move(shard: Shard, rollouts: Sequence[KnownRollout], plans: Mapping[str, PlanRecord]) -> Wanted | None:
    """The same for one shard, for whoever is in a hurry."""
    for rollout in reversed(rollouts):
        for move in _moves(rollout, plans):
            if (move.region_code, move.shard) == shard and (order := _wanted(rollout, move)) is not None:
                return order
    return None


def _moves(rollout: KnownRollout, plans: Mapping[str, PlanRecord]) -> tuple[PlannedMove, ...]:
    plan = plans.get(rollout.record.rollout)
    return plan.moves if plan is not None else ()


def _wanted(rollout: KnownRollout, move: PlannedMove) -> Wanted | None:
    record, is_law = rollout.record, move.required_by_law
    if not record.wants(required_by_law=is_law):
        return None
    return Wanted(move.target, rollout, is_law, may_start=record.state != "paused")


def calls_off(shards: Mapping[Shard, KnownShard], wanted: Mapping[Shard, Wanted]) -> list[CallOff]:
    """The moves under way that nobody wants any more."""
    found: list[CallOff] = []
    for shard, (record, _) in sorted(shards.items()):
        if record.phase not in BEFORE_SWITCH:
            continue
        now = wanted.get(shard)
        if now is None:
            found.append(CallOff(shard, "no rollout wants it any more"))
        elif now.target != record.target:
            found.append(CallOff(shard, f"it is to go to {now.target} instead"))
    return found


def starts(
    shards: Mapping[Shard, KnownShard],
    wanted: Mapping[Shard, Wanted],
    *,
    peers: Mapping[str, tuple[str, ...]],
    troubled: Iterable[Shard],
    resting: frozenset[Shard],
    limits: Limits,
) -> list[Start]:
    """The moves that begin now, as far as the limits allow; those that the law demands first."""
    places = _Places(shards, frozenset(troubled), limits)
    found: list[Start] = []
    for shard, order in sorted(wanted.items(), key=lambda item: not item[1].required_by_law):
        known = shards.get(shard)
        if known is None or not order.may_start or shard in resting:
            continue
        record = known.record
        if record.phase not in (Phase.SERVING, Phase.PURGING) or record.owner == order.target:
            continue
        if not (peers.get(record.owner) and peers.get(order.target)):
            continue
        if places.take(record.owner, order.target):
            found.append(Start(shard, order.target, order.rollout, order.required_by_law))
    return found


class _Places:
    """How many moves there may still be between two IDCs."""

    def __init__(self, shards: Mapping[Shard, KnownShard], troubled: frozenset[Shard], limits: Limits) -> None:
        self._limits = limits
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._idcs: Counter[str] = Counter()
        self._all: Counter[tuple[str, str]] = Counter()
        for shard, (record, _) in shards.items():
            if record.phase not in UNDER_WAY or record.phase == Phase.PURGING:
                continue
            source = record.owner if record.target else (record.leftovers[-1].idc if record.leftovers else record.owner)
            pair = source, record.target or record.owner
            self._all[pair] += 1
            if shard not in troubled:
                self._count(pair)

    def take(self, source: str, target: str) -> bool:
        pair = source, target
        limits = self._limits
        if self._pairs[pair] >= limits.per_pair or self._all[pair] >= MOST_IN_TROUBLE * limits.per_pair:
            return False
        if max(self._idcs[source], self._idcs[target]) >= limits.per_idc:
            return False
        self._all[pair] += 1
        self._count(pair)
        return True

    def _count(self, pair: tuple[str, str]) -> None:
        self._pairs[pair] += 1
        self._idcs.update(set(pair))


def unfinished(
    moves: Iterable[PlannedMove],
    record: RolloutRecord,
    shards: Mapping[Shard, KnownShard],
    *,
    is_arrival_wanted: bool = False,
) -> list[PlannedMove]:
    """The moves of a rollout that have not come to their end: there and purged, or called off and purged.

    With `is_arrival_wanted`, only the former counts.
    """
    return [
        move
        for move in moves
        if not _is_finished(move, record, shards.get((move.region_code, move.shard)), is_arrival_wanted)
    ]


def _is_finished(move: PlannedMove, rollout: RolloutRecord, known: KnownShard | None, is_arrival_wanted: bool) -> bool:
    if known is None:
        return True
    record = known.record
    if any(left.rollout == rollout.rollout for left in record.leftovers):
        return False
    if record.owner == move.target:
        return record.phase != Phase.OPENING
    if is_arrival_wanted or record.phase in (Phase.OPENING, Phase.ABORTING):
        return False
    return not rollout.wants(required_by_law=move.required_by_law) and record.target != move.target
