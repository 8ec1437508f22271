"""What the controller does next: a pure function of the world as it is (sections 6 and 8 of the design speak of why).

The world is looked at anew each turn, so it does not matter where an earlier turn, or an earlier controller, was
interrupted. A shard goes through these steps, and each step is decided from the shard's record alone:

    no record --assign--> opening --open--> serving

`STEPS` is that table. No step is decided for an owner that the residency rule does not permit (law L1): such a record
is named in the sentence and left for a person.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from policy.intent import intended_owners
from policy.model import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policy.cluster import KnownShard
    from policy.compile import Policy
    from policy.records import RolloutRecord

SHARDS_PER_TRANSACTION = 120
"""Below etcd's 128 operations, with room for the compares on the election and on the policy."""
SHARDS_PER_CALL = 1000


class Step(Enum):
    """What a shard needs next."""

    ASSIGN = "assign"
    OPEN = "open"


STEPS: Mapping[str | None, Step | None] = MappingProxyType(
    {None: Step.ASSIGN, Phase.OPENING: Step.OPEN, Phase.SERVING: None}
)
"""Phase (None: no record yet) -> the step that leads to the next one."""


class KnownRollout(NamedTuple):
    """A rollout that has not ended, and the revision to compare with when it is to be changed."""

    record: RolloutRecord
    mod_revision: int


@dataclass(frozen=True, slots=True)
class World:
    """All that is decided from."""

    policy: Policy
    shards: Mapping[tuple[str, int], KnownShard]
    peers: Mapping[str, tuple[str, ...]]
    """IDC -> peer addresses of its live gateways."""
    rollouts: tuple[KnownRollout, ...] = ()
    """Those that are running, oldest first."""
    failures: Mapping[str, str] = field(default_factory=dict[str, str])
    """IDC -> why the last step there did not succeed."""
    now: str = ""
    """RFC 3339, UTC."""


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


Action = Assign | Open | NoteRollout


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be done, in this order, and why."""

    actions: tuple[Action, ...]
    sentence: str
    is_done: bool
    """Whether every shard serves."""


def decide(world: World) -> Turn:
    """Decides one turn."""
    policy = world.policy
    owners = {shard: known.record.owner for shard, known in world.shards.items()}
    waiting: dict[Step, list[tuple[str, int, str]]] = {step: [] for step in Step}
    unlawful: list[tuple[str, int, str]] = []
    for (region_code, shard), owner in sorted(intended_owners(policy, owners).items()):
        if region_code not in policy.regions:
            continue
        known = world.shards.get((region_code, shard))
        step = STEPS.get(known.record.phase if known is not None else None)
        if step is not None:
            fits = is_lawful(policy, region_code, owner)
            (waiting[step] if fits else unlawful).append((region_code, shard, owner))
    actions = [*_assignments(world, waiting[Step.ASSIGN]), *_openings(world, waiting[Step.OPEN])]
    sentence = _sentence(world, waiting, unlawful)
    remaining = sum(map(len, waiting.values())) + len(unlawful)
    notes = _notes(world, remaining, sentence)
    return Turn((*actions, *notes), sentence, is_done=remaining == 0)


def is_lawful(policy: Policy, region_code: str, idc: str) -> bool:
    """Whether the residency rule permits rows of the RegionCode in the IDC (law L1)."""
    residency = policy.regions.get(region_code)
    return residency is not None and policy.idcs.get(idc) in residency.jurisdictions


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
        is_done = remaining == 0
        wanted = replace(
            record,
            state="done" if is_done else "running",
            shards_done=max(0, record.shards_total - remaining),
            end_time=world.now if is_done else "",
            note=sentence,
        )
        if wanted != record:
            yield NoteRollout(wanted, mod_revision)


def _sentence(
    world: World, waiting: Mapping[Step, list[tuple[str, int, str]]], unlawful: list[tuple[str, int, str]]
) -> str:
    parts: list[str] = []
    if waiting[Step.ASSIGN]:
        parts.append(f"assigning {_counted(waiting[Step.ASSIGN])}")
    for idc, mine in sorted(_by_owner(waiting[Step.OPEN]).items()):
        if not world.peers.get(idc):
            parts.append(f"{_shards(len(mine))} of {idc} wait for a gateway there, and none is alive")
        elif idc in world.failures:
            parts.append(f"opening {_shards(len(mine))} at {idc} again after: {world.failures[idc]}")
        else:
            parts.append(f"opening {_shards(len(mine))} at {idc}")
    if unlawful:
        region_code, shard, owner = unlawful[0]
        parts.append(
            f"leaving {_shards(len(unlawful))} alone, because the policy does not permit the recorded owner (the first "
            f"is {region_code}/{shard} at {owner})"
        )
    return f"policy revision {world.policy.revision}: {'; '.join(parts) or 'every shard is served by its owner'}"


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
