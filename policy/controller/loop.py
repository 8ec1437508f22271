"""The controller's loop: stand for election, and while elected take turns until nothing is left to do.

Events only wake it; each turn looks at the whole state. A turn ends in one sentence, which goes to the log when it
differs from the one before, and to the rollouts' notes. Before the next turn the follower catches up with what this one
has written, or the turn would decide from a state that it has changed itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from policy.audit.chain import AuditChain
from policy.controller.act import Actor, WorldChanged
from policy.controller.decide import Limits, Turn, World, decide
from policy.controller.drive import DriveContext, DriveSettings
from policy.controller.drivers import Drivers
from policy.controller.moves import wanted_move
from policy.controller.orders import Orders
from policy.metrics import CONTROLLER_TURN_SECONDS, CONTROLLER_TURNS, IS_LEADER
from runtime.etcd import Election, EtcdError, Lease
from runtime.tasks import first_of

if TYPE_CHECKING:
    from policy.controller.moves import Wanted
    from policy.controller.peers import PeerCalls
    from policy.follower import Follower
    from policy.intent import Shard
    from policy.records import Keys
    from runtime.etcd import EtcdClient, Leadership
    from runtime.telemetry.tracing import Tracing

log = structlog.get_logger(__name__)

RESYNC_SECONDS = 30.0
CATCH_UP_SECONDS = 2.0
SHORTEST_PAUSE = 0.05
"""Between two turns: while shards move, something changes all the time, and drivers need no turn to go on."""
FIRST_RETRY = 0.2
MAX_RETRY = 5.0


@dataclass
class Controller:
    """One candidate."""

    client: EtcdClient
    keys: Keys
    follower: Follower
    peers: PeerCalls
    name: str
    tracing: Tracing
    lease_ttl: timedelta = timedelta(seconds=5)
    limits: Limits = field(default_factory=Limits)
    drive: DriveSettings = field(default_factory=DriveSettings)
    is_leader: bool = False
    sentence: str = "waiting to be elected"
    """What the last turn decided, and why."""

    def __post_init__(self) -> None:
        self._orders = Orders(self.client, self.keys)

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop`; survives anything that etcd does."""
        following = asyncio.create_task(self._orders.run(), name="orders")
        try:
            while not stop.is_set():
                await self._stand(stop)
                if not stop.is_set():
                    await first_of(stop, timeout=random.uniform(0.2, 1))  # noqa: S311 - jitter
        finally:
            following.cancel()
            await asyncio.wait({following})

    async def _stand(self, stop: asyncio.Event) -> None:
        """Stands for election once, and leads when elected."""
        try:
            async with Lease.grant(self.client, self.lease_ttl) as lease:
                leadership = await self._campaign(lease, stop)
                if leadership is not None:
                    await self._lead(leadership, stop)
        except EtcdError as error:
            log.warning("not leading", reason=f"{type(error).__name__}: {error}")
        finally:
            self._tell_leading(is_leader=False)

    async def _campaign(self, lease: Lease, stop: asyncio.Event) -> Leadership | None:
        election = Election(self.client, self.keys.controller_election, self.name.encode())
        campaign = asyncio.create_task(election.campaign(lease))
        ending = asyncio.create_task(first_of(stop, lease.done))
        try:
            await asyncio.wait({campaign, ending}, return_when=asyncio.FIRST_COMPLETED)
            return campaign.result() if campaign.done() else None
        finally:
            for task in (campaign, ending):
                task.cancel()
            await asyncio.gather(campaign, ending, return_exceptions=True)

    async def _lead(self, leadership: Leadership, stop: asyncio.Event) -> None:
        self._tell_leading(is_leader=True)
        log.info("elected", controller=self.name, token=leadership.token)
        drivers = Drivers(self._drive_context(leadership))
        try:
            await self._take_turns(leadership, drivers, stop)
        finally:
            await drivers.stop()
        if leadership.is_leader:
            await leadership.resign()

    async def _take_turns(self, leadership: Leadership, drivers: Drivers, stop: asyncio.Event) -> None:
        actor = Actor(self.client, self.keys, leadership, peers=self.peers, orders=self._orders)
        failures: dict[str, str] = {}
        retry = FIRST_RETRY
        # Who does not know what is wanted would call off what is under way.
        await first_of(stop, leadership.lease.done, self._orders.loaded)
        while leadership.is_leader and not stop.is_set():
            changed, ordered = self.follower.changed, self._orders.changed
            drivers.ended.clear()
            turn, failures = await self._turn(actor, drivers, failures)
            retry = min(MAX_RETRY, retry * 2) if turn is None or failures else FIRST_RETRY
            await self._catch_up(actor)
            drivers.reconcile(self.follower.state.shards)
            if turn is not None and turn.actions and not failures:
                continue
            pause = RESYNC_SECONDS if turn is not None and turn.is_done else retry
            pause = min(pause, drivers.next_wake or pause)
            await first_of(stop, leadership.lease.done, timeout=SHORTEST_PAUSE)
            await first_of(stop, leadership.lease.done, changed, ordered, drivers.ended, timeout=pause)

    def _drive_context(self, leadership: Leadership) -> DriveContext:
        return DriveContext(
            client=self.client,
            keys=self.keys,
            leadership=leadership,
            follower=self.follower,
            peers=self.peers,
            audit=AuditChain(self.client, self.keys),
            tracing=self.tracing,
            wanted=self._wanted,
            settings=self.drive,
        )

    def _wanted(self, shard: Shard) -> Wanted | None:
        return wanted_move(shard, self._orders.rollouts, self._orders.plans)

    async def _turn(
        self, actor: Actor, drivers: Drivers, failures: dict[str, str]
    ) -> tuple[Turn | None, dict[str, str]]:
        """One turn: what was decided (None when the world changed under it) and where acting failed."""
        started = time.perf_counter()
        table, shards = self.follower.table, dict(self.follower.state.shards)
        mod_revision = self.follower.policy_mod_revision
        if table is None or self.follower.problem:
            return self._told(
                Turn((), f"no policy to act on: {self.follower.problem or 'none was applied yet'}", True)
            ), {}
        drivers.reconcile(shards)
        addresses = {idc: tuple(r.peer_address for r in them) for idc, them in self.follower.gateways.items()}
        await self.peers.keep_only({address for them in addresses.values() for address in them})
        drained, actor.order_mod_revision = await self._orders.read_drained()
        world = World(
            table.policy,
            shards,
            addresses,
            self._orders.rollouts,
            failures,
            datetime.now(UTC).isoformat(),
            plans=self._orders.plans,
            troubles=drivers.troubles,
            resting=drivers.resting,
            limits=self.limits,
            drained=drained,
        )
        turn = self._told(decide(world))
        try:
            failed = await actor.perform(turn.actions, shards, mod_revision)
        except WorldChanged:
            CONTROLLER_TURNS.labels("overtaken").inc()
            return None, failures
        CONTROLLER_TURNS.labels("failed" if failed else "done").inc()
        CONTROLLER_TURN_SECONDS.observe(time.perf_counter() - started)
        return turn, failed

    def _told(self, turn: Turn) -> Turn:
        if turn.sentence != self.sentence:
            self.sentence = turn.sentence
            log.info("decided", sentence=turn.sentence, actions=len(turn.actions))
        return turn

    async def _catch_up(self, actor: Actor) -> None:
        await self.follower.wait_seen(actor.store_revision, asyncio.get_running_loop().time() + CATCH_UP_SECONDS)

    def _tell_leading(self, *, is_leader: bool) -> None:
        self.is_leader = is_leader
        IS_LEADER.set(is_leader)
