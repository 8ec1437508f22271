"""What the controller does next: a pure function of the world as it is (sections 6 and 8 of the design speak of why).

The world is looked at anew each turn, so it does not matter where an earlier turn, or an earlier controller, was
interrupted. A shard goes through these steps, and each step is decided from the shard's record alone:

    no record --assign--> opening --open--> serving

`STEPS` is that table. No step is decided for an owner that the residency rule does not permit (law L1): such a record
is named in the sentence and left for a person. What leads from one owner to another is decided in
`policy.controller.moves`, and done by a driver for each shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

from policy.cluster import KnownRollout
from policy.controller.moves import CallOff, Limits, Start, calls_off, starts, unfinished, wanted_moves
from policy.intent import intended_owners, is_lawful
from policy.model import Phase
from policy.move import UNDER_WAY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policy.cluster import KnownShard
    from policy.compile import Policy
    from policy.controller.moves import Wanted
    from policy.records import PlanRecord, RolloutRecord

__all__ = ["Assign", "CallOff", "KnownRollout", "Limits", "NoteRollout", "Open", "Start", "Turn", "World", "decide"]

SHARDS_PER_TRANSACTION = 120
"""Below etcd's 128 operations, with room for the compares on the election and on the policy."""
SHARDS_PER_CALL = 1000


class Step(Enum):
    """What a shard needs next."""

    ASSIGN = "assign"
    OPEN = "open"


STEPS: Mapping[str | None, Step | None] = MappingProxyType(
    {None: Step.ASSIGN, **dict.fromkeys(Phase), Phase.OPENING: Step.OPEN}
)
"""Phase (None: no record yet) -> the step that leads to the next one; the phases of a move are its driver's."""


@dataclass(frozen=True, slots=True)
class World:
    """All that is decided from."""

    policy: Policy
    shards: Mapping[tuple[str, int], KnownShard]
    peers: Mapping[str, tuple[str, ...]]
    """IDC -> peer addresses of its live gateways."""
    rollouts: tuple[KnownRollout, ...] = ()
    """Those that have not ended, oldest first."""
    failures: Mapping[str, str] = field(default_factory=dict[str, str])
    """IDC -> why the last step there did not succeed."""
    now: str = ""
    """RFC 3339, UTC."""
    plans: Mapping[str, PlanRecord] = field(default_factory=dict[str, "PlanRecord"])
    """The moves of those rollouts."""
    troubles: Mapping[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    """Shards whose move does not get on, and why."""
    resting: frozenset[tuple[str, int]] = frozenset()
    """Shards whose move failed a short while ago, and is not to be tried again yet."""
    limits: Limits = field(default_factory=Limits)
    drained: frozenset[str] = frozenset()
    """IDCs that are to be emptied: no shard has its first owner there, as long as the law leaves another."""


@dataclass(frozen=True, slots=True)
class Assign:
    """Give these shards their first owner, all in one transaction."""

    owners: tuple[tuple[str, int, str], ...]
    """RegionCode, number, IDC."""
    policy_revision: int
    rollout: str


@dataclass(frozen=True, slots=True)
class Open:
    """Have the owner open the fences of these shards, then let them serve."""

    idc: str
    peers: tuple[str, ...]
    shards: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class NoteRollout:
    """Write down where a rollout stands."""

    record: RolloutRecord
    mod_revision: int


Action = Assign | Open | Start | CallOff | NoteRollout


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be done, in this order, and why."""

    actions: tuple[Action, ...]
    sentence: str
    is_done: bool
    """Whether every shard serves, and no move is wanted or under way."""


@dataclass(frozen=True, slots=True)
class _FirstSteps:
    """Shards on the way to their first owner."""

    waiting: Mapping[Step, list[tuple[str, int, str]]]
    unlawful: list[tuple[str, int, str]]

    @property
    def remaining(self) -> int:
        return sum(map(len, self.waiting.values())) + len(self.unlawful)


def decide(world: World) -> Turn:
    """Decides one turn."""
    first = _first_steps(world)
    wanted = wanted_moves(world.rollouts, world.plans)
    called_off = calls_off(world.shards, wanted)
    started = starts(
        world.shards,
        wanted,
        peers=world.peers,
        troubled=world.troubles,
        resting=world.resting,
        limits=world.limits,
    )
    under_way = _under_way(world)
    parts = [*_first_parts(world, first), *_move_parts(world, under_way, wanted, started)]
    what = "; ".join(parts) or "every shard is served by its owner"
    sentence = f"policy revision {world.policy.revision}: {what}"
    notes = tuple(_notes(world, first.remaining, sentence))
    actions = [
        *_assignments(world, first.waiting[Step.ASSIGN]),
        *_openings(world, first.waiting[Step.OPEN]),
        *called_off,
        *started,
        *notes,
    ]
    are_rollouts_done = all(note.record.is_ended for note in notes) and len(notes) == len(world.rollouts)
    is_done = not first.remaining and are_rollouts_done and not under_way
    return Turn(tuple(actions), sentence, is_done)


def _first_steps(world: World) -> _FirstSteps:
    policy = world.policy
    owners = {shard: known.record.owner for shard, known in world.shards.items()}
    waiting: dict[Step, list[tuple[str, int, str]]] = {step: [] for step in Step}
    unlawful: list[tuple[str, int, str]] = []
    for (region_code, shard), owner in sorted(intended_owners(policy, owners, world.drained).items()):
        if region_code not in policy.regions:
            continue
        known = world.shards.get((region_code, shard))
        step = STEPS.get(known.record.phase if known is not None else None)
        if step is None or (known is not None and known.record.attempt):
            continue
        fits = is_lawful(policy, policy.regions[region_code], owner)
        (waiting[step] if fits else unlawful).append((region_code, shard, owner))
    return _FirstSteps(waiting, unlawful)


def _under_way(world: World) -> list[tuple[str, int]]:
    return [
        shard
        for shard, (record, _) in sorted(world.shards.items())
        if record.phase in UNDER_WAY and (record.phase != Phase.OPENING or record.attempt)
    ]


def _assignments(world: World, shards: list[tuple[str, int, str]]) -> Iterable[Assign]:
    rollout = world.rollouts[-1].record.rollout if world.rollouts else ""
    for start in range(0, len(shards), SHARDS_PER_TRANSACTION):
        yield Assign(tuple(shards[start : start + SHARDS_PER_TRANSACTION]), world.policy.revision, rollout)


def _openings(world: World, shards: list[tuple[str, int, str]]) -> Iterable[Open]:
    for idc, mine in sorted(_by_owner(shards).items()):
        peers = world.peers.get(idc, ())
        for start in range(0, len(mine) if peers else 0, SHARDS_PER_CALL):
            yield Open(idc, peers, tuple(mine[start : start + SHARDS_PER_CALL]))


def _notes(world: World, remaining: int, sentence: str) -> Iterable[NoteRollout]:
    for record, mod_revision in world.rollouts:
        plan = world.plans.get(record.rollout)
        first = remaining if record.kind == "policy" else 0
        moves = plan.moves if plan is not None else ()
        left = first + len(unfinished(moves, record, world.shards))
        # A move that was called off has come to its end, and is yet not done.
        undone = first + len(unfinished(moves, record, world.shards, is_arrival_wanted=True))
        state = record.state
        if not left:
            state = "cancelled" if record.state == "cancelling" else "done"
        wanted = replace(
            record,
            state=state,
            shards_done=max(0, record.shards_total - undone),
            end_time=world.now if not left else "",
            note=sentence,
        )
        if wanted != record:
            yield NoteRollout(wanted, mod_revision)


def _first_parts(world: World, first: _FirstSteps) -> Iterable[str]:
    if first.waiting[Step.ASSIGN]:
        yield f"assigning {_counted(first.waiting[Step.ASSIGN])}"
    for idc, mine in sorted(_by_owner(first.waiting[Step.OPEN]).items()):
        if not world.peers.get(idc):
            yield f"{_shards(len(mine))} of {idc} wait for a gateway there, and none is alive"
        elif idc in world.failures:
            yield f"opening {_shards(len(mine))} at {idc} again after: {world.failures[idc]}"
        else:
            yield f"opening {_shards(len(mine))} at {idc}"
    if first.unlawful:
        region_code, shard, owner = first.unlawful[0]
        yield (
            f"leaving {_shards(len(first.unlawful))} alone, because the policy does not permit the recorded owner (the "
            f"first is {region_code}/{shard} at {owner})"
        )


def _move_parts(
    world: World,
    under_way: list[tuple[str, int]],
    wanted: Mapping[tuple[str, int], Wanted],
    started: list[Start],
) -> Iterable[str]:
    """What the moves come to: how many are under way, how many wait, and what holds some up."""
    purging = [shard for shard in under_way if world.shards[shard].record.phase == Phase.PURGING]
    moving = {shard for shard in under_way if world.shards[shard].record.phase != Phase.PURGING}
    moving |= {it.shard for it in started}
    waiting = [
        shard
        for shard, order in wanted.items()
        if shard in world.shards and world.shards[shard].record.owner != order.target and shard not in moving
    ]
    if moving:
        yield f"moving {_shards(len(moving))}"
    if waiting:
        dead = sorted({wanted[shard].target for shard in waiting if not world.peers.get(wanted[shard].target)})
        why = f" ({', '.join(dead)} {'has' if len(dead) == 1 else 'have'} no live gateway)" if dead else ""
        yield f"{_shards(len(waiting))} wait to be moved{why}"
    if purging:
        yield f"purging what is left of {_shards(len(purging))}"
    if world.troubles:
        (region_code, shard), why = min(world.troubles.items())
        yield f"{_shards(len(world.troubles))} in trouble (the first is {region_code}/{shard}: {why})"


def _by_owner(shards: Iterable[tuple[str, int, str]]) -> dict[str, list[tuple[str, int]]]:
    grouped: dict[str, list[tuple[str, int]]] = {}
    for region_code, shard, owner in shards:
        grouped.setdefault(owner, []).append((region_code, shard))
    return grouped


def _counted(shards: list[tuple[str, int, str]]) -> str:
    counts = {idc: len(mine) for idc, mine in sorted(_by_owner(shards).items())}
    return f"{_shards(len(shards))} ({', '.join(f'{count} to {idc}' for idc, count in counts.items())})"


def _shards(count: int) -> str:
    return f"{count} shard{'' if count == 1 else 's'}"
