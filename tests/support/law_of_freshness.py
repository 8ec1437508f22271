"""Law L6 as a small world: one gateway, etcd, one `apply`, and every order in which their steps can happen.

The gateway's steps are those of `policy.presence`, with each call to etcd cut in three (sent, executed, answered), so
that a pause can lie anywhere between. What can be taken from the product is taken: when a revision counts as effective
is asked of `policy.effect`, what a gateway may say is asked of `gateway.judge`. Time is a small number of ticks; etcd
ends a lease at the earliest moment that it may, which is the worst for the law.

Each guard of the protocol can be switched off here, to see that the law falls without it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from gateway.judge import Deny, Forward, Serve, asking_side, judge, still_stands
from gateway.operations import Action, CallContext, RowOperation
from policy.effect import Acknowledgements
from policy.records import GatewayRecord, Keys
from runtime.etcd import KeyValue, Listing
from tests.support import routing

if TYPE_CHECKING:
    from collections.abc import Iterator

TTL = 2
END_OF_TIME = 6
NEVER = -1


@dataclass(frozen=True)
class Guards:
    """What keeps the law; all of it in the product."""

    registration_compares_the_policy: bool = True
    serves_only_when_registered: bool = True
    lease_counts_from_the_sending: bool = True
    freshness_ends_by_the_own_clock: bool = True
    freshness_goes_before_the_record: bool = True
    apply_waits_for_every_record: bool = True
    answers_are_judged_again: bool = True


class Rpc(NamedTuple):
    """A call to etcd on its way."""

    kind: str
    """grant | register | acknowledge | renew | revoke"""
    sent: int
    says: int = 0
    """The policy revision that it carries."""
    is_executed: bool = False
    succeeded: bool = False


class World(NamedTuple):
    """Everything at one moment."""

    now: int = 0
    current: int = 1
    """The policy revision in etcd."""
    is_effective: bool = False
    """Whether `apply` of revision 2 has returned."""
    leases: tuple[tuple[int, int], ...] = ()
    """In etcd, one for each that was granted: when it ends (NEVER: it is gone), and the revision in its record."""
    table: int = 1
    """The revision that the gateway has loaded."""
    deadline: int = NEVER
    """When the gateway's lease ends by its own account."""
    is_registered: bool = False
    call: Rpc | None = None
    """Of the task that registers and acknowledges."""
    renewal: Rpc | None = None
    """Of the task that keeps the lease alive."""
    request: int = 0
    """The revision by which a border crossing in flight was judged; 0 for none."""


LAW = {
    1: routing.policy(revision=1),
    2: routing.policy(routing.POLICY.replace("purposes: [support]", "purposes: [nothing]"), revision=2),
}
TABLES = {revision: routing.table(law, store_revision=revision) for revision, law in LAW.items()}
CROSSING = asking_side("sin", CallContext(0.0, "support"))
HOME = asking_side("fra", CallContext(0.0))
_KEYS = Keys("model")
_COMMITTED = 10
"""Store revision of the transaction that makes revision 2 current."""


def _operation(revision: int) -> RowOperation:
    return RowOperation(Action.GET, LAW[revision].datasets["customers"], "DE", "k")


@lru_cache
def may_cross(judged_by: int, newest: int, *, is_fresh: bool) -> bool:
    """Whether a crossing that only revision 1 allows, judged by one table, may leave under another."""
    operation = _operation(judged_by)
    verdict = judge(TABLES[judged_by], operation, CROSSING, is_fresh=True)
    if not isinstance(verdict, Forward):
        return False
    now = still_stands(verdict.decision, LAW[judged_by], TABLES[newest], operation, CROSSING, is_fresh=is_fresh)
    return not isinstance(now, Deny)


@lru_cache
def may_begin(table: int, *, is_fresh: bool) -> bool:
    """Whether such a crossing is begun."""
    return isinstance(judge(TABLES[table], _operation(table), CROSSING, is_fresh=is_fresh), Forward)


@lru_cache
def serves_its_own(table: int, *, is_fresh: bool) -> bool:
    """Whether the owner serves its own jurisdiction."""
    return isinstance(judge(TABLES[table], _operation(table), HOME, is_fresh=is_fresh), Serve)


@lru_cache
def _is_effective(records: tuple[int, ...]) -> bool:
    items = tuple(
        KeyValue(
            _KEYS.gateway("sin", f"sin-1.{number}"),
            GatewayRecord("sin-1", "sin", "", "", revision).encode(),
            1,
            1,
            1,
            1,
        )
        for number, revision in enumerate(records)
    )
    account = Acknowledgements(_KEYS, 2, _COMMITTED)
    account.take(Listing(items, _COMMITTED))
    return account.effect.is_effective


class Protocol:
    """The steps that can follow each other."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards

    def is_fresh(self, world: World) -> bool:
        """What the gateway holds of itself."""
        guards = self.guards
        is_in_time = world.now < world.deadline or (not guards.freshness_ends_by_the_own_clock and world.deadline >= 0)
        return is_in_time and (world.is_registered or not guards.serves_only_when_registered)

    def breaks_the_law(self, world: World) -> bool:
        """Whether the gateway could let revision 1's crossing pass now, though revision 2 is effective."""
        if not world.is_effective:
            return False
        is_fresh = self.is_fresh(world)
        begins = world.table == 1 and may_begin(1, is_fresh=is_fresh) and may_cross(1, 1, is_fresh=is_fresh)
        if world.request != 1:
            return begins
        return begins or not self.guards.answers_are_judged_again or may_cross(1, world.table, is_fresh=is_fresh)

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """Everything that can happen next."""
        if world.now < END_OF_TIME:
            leases = tuple((end if world.now + 1 < end else NEVER, says) for end, says in world.leases)
            yield "time passes", world._replace(now=world.now + 1, leases=leases)
        yield from self._of_the_admin(world)
        if world.table != world.current:
            yield "the watch brings the policy", world._replace(table=world.current)
        is_fresh = self.is_fresh(world)
        if not world.request and may_begin(world.table, is_fresh=is_fresh):
            yield "a crossing is judged", world._replace(request=world.table)
        elif world.request:
            yield "a crossing is answered", world._replace(request=0)
        if world.call is None:
            yield from self._of_presence(world)
        elif world.call.is_executed:
            yield f"{world.call.kind} is answered", self._answer(world, world.call)
        else:
            yield f"etcd does {world.call.kind}", self._execute(world, world.call)
        yield from self._of_the_keeper(world)

    def _of_the_admin(self, world: World) -> Iterator[tuple[str, World]]:
        if world.current == 1:
            yield "revision 2 becomes current", world._replace(current=2)
        elif not world.is_effective:
            records = tuple(says for end, says in world.leases if end != NEVER and says)
            if not self.guards.apply_waits_for_every_record or _is_effective(records):
                yield "apply returns", world._replace(is_effective=True)

    def _of_presence(self, world: World) -> Iterator[tuple[str, World]]:
        if world.deadline == NEVER:
            if len(world.leases) < 2:
                yield "a lease is asked for", world._replace(call=Rpc("grant", world.now))
            return
        if world.now >= world.deadline:
            lost = world._replace(deadline=NEVER, is_registered=False, renewal=None)
            yield "the gateway notices that its lease is over", lost
        elif not world.is_registered:
            yield "the gateway registers", world._replace(call=Rpc("register", world.now, world.table))
        else:
            if world.leases[-1][1] != world.table:
                yield "the gateway acknowledges", world._replace(call=Rpc("acknowledge", world.now, world.table))
            goes_first = self.guards.freshness_goes_before_the_record
            withdrawing = world._replace(call=Rpc("revoke", world.now), renewal=None)
            yield "the gateway withdraws", withdrawing._replace(is_registered=False) if goes_first else withdrawing

    def _of_the_keeper(self, world: World) -> Iterator[tuple[str, World]]:
        renewal = world.renewal
        if renewal is None:
            is_leaving = world.call is not None and world.call.kind in {"grant", "revoke"}
            if world.now < world.deadline and not is_leaving:
                yield "a keep-alive is sent", world._replace(renewal=Rpc("renew", world.now))
        elif renewal.is_executed:
            yield "the keep-alive is answered", self._renewed(world, renewal)
        else:
            end, says = world.leases[-1]
            is_alive = end != NEVER
            leases = (*world.leases[:-1], (world.now + TTL if is_alive else NEVER, says))
            done = renewal._replace(is_executed=True, succeeded=is_alive)
            yield "etcd renews", world._replace(leases=leases, renewal=done)
            yield "the keep-alive is lost", world._replace(renewal=None)

    def _ends(self, world: World, sent: int) -> int:
        return (sent if self.guards.lease_counts_from_the_sending else world.now) + TTL

    def _renewed(self, world: World, renewal: Rpc) -> World:
        world = world._replace(renewal=None)
        if renewal.succeeded and world.now < world.deadline:
            return world._replace(deadline=max(world.deadline, self._ends(world, renewal.sent)))
        return world

    def _execute(self, world: World, call: Rpc) -> World:
        *older, newest = world.leases or ((NEVER, 0),)
        end, says = newest
        if call.kind == "grant":
            return world._replace(
                leases=(*world.leases, (world.now + TTL, 0)), call=call._replace(is_executed=True, succeeded=True)
            )
        succeeded = end != NEVER
        if call.kind == "register":
            succeeded &= call.says == world.current or not self.guards.registration_compares_the_policy
        record = (NEVER, 0) if call.kind == "revoke" else (end, call.says if succeeded else says)
        return world._replace(leases=(*older, record), call=call._replace(is_executed=True, succeeded=succeeded))

    def _answer(self, world: World, call: Rpc) -> World:
        world = world._replace(call=None)
        if call.kind == "grant":
            return world._replace(deadline=self._ends(world, call.sent))
        if call.kind == "register":
            return world._replace(is_registered=call.succeeded)
        if call.kind == "revoke" or not call.succeeded:
            return world._replace(deadline=NEVER, is_registered=False, renewal=None)
        return world


def explore(guards: Guards) -> tuple[list[str], list[World]]:
    """Visits every world that can come about; the first way to break the law (empty: there is none), and all worlds."""
    protocol, start = Protocol(guards), World()
    came_from: dict[World, tuple[World, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        if protocol.breaks_the_law(world):
            return _story(came_from, world), list(came_from)
        for step, following in protocol.steps(world):
            if following not in came_from:
                came_from[following] = (world, step)
                queue.append(following)
    return [], list(came_from)


def _story(came_from: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    story: list[str] = []
    while (before := came_from[world]) is not None:
        world, step = before
        story.append(step)
    return story[::-1]
