"""Orders of operators: move one shard, empty an IDC, and cancel, pause or resume a rollout.

An order decides nothing about how a shard moves: it stores what is wanted, as a rollout with a plan that never changes,
and the controller does it. Each order is one transaction that compares all it was decided by (`policy.standing`), puts
`last_order`, and appends to the audit trail; if something has changed meanwhile, it is decided again. So of two admins
at once one comes first, and the other one's order is judged by what is so then.

A shard is in the plan of at most one open rollout: whoever takes one over ends the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import structlog

from policy.apply import check_words, plan_record, superseding
from policy.audit.entry import Fact
from policy.draining import plan_drain
from policy.errors import AccessDenied, IllegalMove, NoPolicy, UnknownIdc, UnknownShard
from policy.intent import is_lawful
from policy.model import Phase
from policy.plan import ShardMove
from policy.records import DrainRecord, OrderRecord, RolloutRecord
from policy.standing import Snapshot, check_room, compiled, pause, read_snapshot
from policy.store import told_as_ours
from policy.wording import join
from runtime.etcd import compare_mod_revision, delete_op, put_op

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from policy.compile import Policy
    from policy.draining import DrainPlan, Stuck
    from policy.records import PlannedMove
    from policy.store import PolicyStore
    from runtime.etcd import Compare, Op

log = structlog.get_logger(__name__)

_Answer = TypeVar("_Answer")


class Signature(NamedTuple):
    """Who gives an order, and why."""

    author: str = ""
    message: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Drained:
    """An IDC that is being emptied."""

    rollout: str
    """Empty when nothing can leave."""
    moved: tuple[ShardMove, ...]
    stuck: tuple[Stuck, ...]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A rollout that is being cancelled."""

    record: RolloutRecord
    going_on: tuple[tuple[PlannedMove, str], ...]
    """Moves that go on, because the law demands them or they have passed their switch, and their phases."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What an order stores, besides its marks."""

    fact: Fact
    puts: Sequence[Op]
    compares: Sequence[Compare] = ()


class Orders:
    """Takes orders for one cluster."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store
        self._keys = store.keys

    async def move_shard(self, region_code: str, shard: int, to_idc: str, signature: Signature) -> RolloutRecord:
        """Orders one shard to another lawful IDC.

        Raises:
            UnknownRegion, UnknownShard, UnknownIdc: there is no such thing.
            AccessDenied: the residency rule, which is named, does not permit the IDC.
            IllegalMove: it is there already, on the move, without an owner, or the IDC is drained.
            LimitReached: too many rollouts are open.
            StoreUnavailable: etcd does not answer, or changes too fast.
        """
        check_words(signature.author, signature.message)

        def decide(snapshot: Snapshot) -> tuple[RolloutRecord, _Change]:
            owner = _check_move(snapshot, region_code, shard, to_idc)
            policy = _policy(snapshot)
            is_lawless = not is_lawful(policy, policy.regions[region_code], owner)
            move = ShardMove(region_code, shard, owner, to_idc, is_lawless)
            record = _rollout(snapshot, "move", [move], signature)
            return record, _Change(_move_fact(record, move), self._start(record, [move]))

        return await self._order(f"move {region_code}/{shard} to {to_idc}", decide)

    async def drain_idc(self, idc: str, signature: Signature) -> Drained:
        """Orders that an IDC be emptied as far as the law lets its shards go elsewhere, and be assigned none.

        Raises:
            UnknownIdc: the policy has no such IDC.
            LimitReached: too many rollouts are open.
            StoreUnavailable: etcd does not answer, or changes too fast.
        """
        check_words(signature.author, signature.message)

        def decide(snapshot: Snapshot) -> tuple[Drained, _Change]:
            policy = _policy(snapshot)
            _check_idc(policy, idc)
            plan = plan_drain(policy, snapshot.standing, idc)
            record = _rollout(snapshot, "drain", plan.moved, signature) if plan.moved or plan.superseded else None
            drain = DrainRecord(idc, signature.author, signature.message, _now())
            compares, puts = self._take_over(snapshot, plan, record)
            puts = (put_op(self._keys.drain(idc), drain.encode()), *puts)
            drained = Drained(record.rollout if record else "", plan.moved, plan.stuck)
            return drained, _Change(_drain_fact(drain, drained), puts, compares)

        return await self._order(f"drain {idc}", decide)

    async def undrain_idc(self, idc: str, author: str) -> None:
        """Lets an IDC be assigned shards again; moves none back.

        Raises:
            IllegalMove: it is not drained.
            StoreUnavailable: etcd does not answer, or changes too fast.
        """
        check_words(author, "")

        def decide(snapshot: Snapshot) -> tuple[None, _Change]:
            if idc not in snapshot.standing.drained:
                _check_idc(_policy(snapshot), idc)
                raise IllegalMove(f"{idc} is not drained")
            fact = Fact("drain", {"order": "undrain", "idc": idc, "author": author})
            return None, _Change(fact, [delete_op(self._keys.drain(idc))])

        await self._order(f"undrain {idc}", decide)

    async def cancel(self, rollout: str, author: str) -> Cancelled:
        """Orders that what has not passed its switch, and is not demanded by law, be called off.

        Raises:
            RevisionNotFound: there is no such rollout.
            IllegalMove: it has ended, or is being cancelled already.
            StoreUnavailable: etcd does not answer, or changes too fast.
        """
        changed, snapshot = await self._turn(rollout, "cancelling", ("running", "paused"), author)
        phases = ((move, _goes_on(snapshot, rollout, move)) for move in snapshot.plans[rollout].moves)
        return Cancelled(changed, tuple((move, phase) for move, phase in phases if phase))

    async def pause(self, rollout: str, author: str = "") -> RolloutRecord:
        """Orders that no further move begin; what is under way goes on. Raises as `cancel`."""
        return (await self._turn(rollout, "paused", ("running",), author))[0]

    async def resume(self, rollout: str, author: str = "") -> RolloutRecord:
        """Orders that a paused rollout go on. Raises as `cancel`."""
        return (await self._turn(rollout, "running", ("paused",), author))[0]

    async def _turn(
        self, rollout: str, state: str, before: tuple[str, ...], author: str
    ) -> tuple[RolloutRecord, Snapshot]:
        """Brings an open rollout into another state."""
        check_words(author, "")
        await self._store.rollout(rollout)  # raises when there is none

        def decide(snapshot: Snapshot) -> tuple[tuple[RolloutRecord, Snapshot], _Change]:
            known = next((it for it in snapshot.rollouts if it.record.rollout == rollout), None)
            if known is None:
                raise IllegalMove(f"rollout {rollout} has ended")
            if known.record.state not in before:
                raise IllegalMove(f"rollout {rollout} is {known.record.state}, not {join(before, 'or')}")
            key = self._keys.rollout(rollout)
            record = replace(known.record, state=state, note=f"{state} by order{f' of {author}' if author else ''}")
            fact = Fact("rollout", {"order": state, "rollout": rollout, "author": author})
            change = _Change(fact, [put_op(key, record.encode())], [compare_mod_revision(key, known.mod_revision)])
            return (record, snapshot), change

        return await self._order(f"{rollout} {state}", decide)

    async def _order(self, what: str, decide: Callable[[Snapshot], tuple[_Answer, _Change]]) -> _Answer:
        """Decides and stores, again for as long as something changes in between."""
        for tries in count():
            snapshot = await read_snapshot(self._store)
            answer, change = decide(snapshot)
            order = OrderRecord(snapshot.order.number + 1, what, _now())
            policy = compare_mod_revision(self._keys.policy_current, snapshot.base.mod_revision)
            with told_as_ours():
                result = await self._store.audit.transact(
                    [policy, *snapshot.guards, *change.compares],
                    [put_op(self._keys.last_order, order.encode()), *change.puts],
                    change.fact,
                )
            if result.succeeded:
                log.info("order taken", order=what, number=order.number)
                return answer
            await pause(tries)
        raise AssertionError("`pause` ends this")

    def _start(self, record: RolloutRecord, moves: Sequence[ShardMove]) -> tuple[Op, ...]:
        plan = plan_record(record.rollout, moves)
        return (
            put_op(self._keys.rollout(record.rollout), record.encode()),
            put_op(self._keys.plan(record.rollout), plan.encode()),
        )

    def _take_over(
        self, snapshot: Snapshot, plan: DrainPlan, record: RolloutRecord | None
    ) -> tuple[tuple[Compare, ...], tuple[Op, ...]]:
        """Starts the rollout of a drain, and ends those whose moves it has."""
        if record is None:
            return (), ()
        ending = [it for it in snapshot.rollouts if it.record.rollout in plan.superseded]
        compares, puts = superseding(self._keys, ending, record.rollout, record.create_time)
        return compares, (*self._start(record, plan.moved), *puts)


def _check_move(snapshot: Snapshot, region_code: str, shard: int, to_idc: str) -> str:
    """The owner of a shard that may be moved there."""
    policy = _policy(snapshot)
    residency = policy.residency(region_code)
    name = f"{region_code}/{shard}"
    if not 0 <= shard < residency.shards:
        raise UnknownShard(f"{region_code} has shards 0 to {residency.shards - 1}", field_name="shard")
    _check_idc(policy, to_idc)
    if not is_lawful(policy, residency, to_idc):
        law = f"{to_idc} stands under {policy.idcs[to_idc]}"
        raise AccessDenied(
            f"residency rule {residency.rule} keeps {region_code} in {join(residency.jurisdictions)}, and {law}",
            rule=residency.rule,
            policy_revision=policy.revision,
        )
    for rollout, plan in snapshot.plans.items():
        if any((move.region_code, move.shard) == (region_code, shard) for move in plan.moves):
            raise IllegalMove(f"{name} is in the plan of rollout {rollout}, which has not ended")
    owner = snapshot.standing.owners.get((region_code, shard))
    if owner is None:
        raise IllegalMove(f"{name} has no owner yet")
    if owner == to_idc:
        raise IllegalMove(f"{to_idc} owns {name} already")
    if to_idc in snapshot.standing.drained:
        raise IllegalMove(f"{to_idc} is drained: undrain it first")
    return owner


def _goes_on(snapshot: Snapshot, rollout: str, move: PlannedMove) -> str:
    """Phase of a move that goes on though its rollout is cancelled; empty for one that does not, or is at its end."""
    record = snapshot.shards.get((move.region_code, move.shard))
    if record is None:
        return ""
    if record.owner == move.target:
        is_purging = any(left.rollout == rollout for left in record.leftovers)
        return record.phase if record.phase == Phase.OPENING or is_purging else ""
    if not move.required_by_law:
        return ""
    return record.phase if record.target == move.target else "waiting"


def _policy(snapshot: Snapshot) -> Policy:
    policy = compiled(snapshot.base)
    if policy is None:
        raise NoPolicy("no policy has been applied yet")
    return policy


def _check_idc(policy: Policy, idc: str) -> None:
    if idc not in policy.idcs:
        raise UnknownIdc(f"the policy has no such IDC; it has {join(policy.idcs)}", field_name="idc")


def _rollout(snapshot: Snapshot, kind: str, moves: Sequence[ShardMove], signature: Signature) -> RolloutRecord:
    check_room(snapshot)
    return RolloutRecord(
        rollout=f"{kind[0]}{snapshot.order.number + 1:08d}",
        policy_revision=snapshot.base.revision,
        state="running",
        create_time=_now(),
        shards_total=len(moves),
        note=f"{len(moves)} shard{'' if len(moves) == 1 else 's'} waiting to be moved",
        traceparent=signature.traceparent,
        kind=kind,
        author=signature.author,
        message=signature.message,
    )


def _move_fact(record: RolloutRecord, move: ShardMove) -> Fact:
    return Fact(
        "rollout",
        {
            "order": "move",
            "rollout": record.rollout,
            "region_code": move.region_code,
            "shard": move.shard,
            "from": move.from_idc,
            "to": move.to_idc,
            "author": record.author,
            "message": record.message,
        },
    )


def _drain_fact(drain: DrainRecord, drained: Drained) -> Fact:
    return Fact(
        "drain",
        {
            "order": "drain",
            "idc": drain.idc,
            "rollout": drained.rollout,
            "moved": len(drained.moved),
            "stuck": {stuck.region_code: stuck.shards for stuck in drained.stuck},
            "author": drain.author,
            "message": drain.message,
        },
    )


def _now() -> str:
    return datetime.now(UTC).isoformat()
