"""The controller's loop: stand for election, and while elected take turns until nothing is left to do.

Events only wake it; each turn looks at the whole state. A turn ends in one sentence, which goes to the log when it
differs from the one before, and to the rollouts' notes. Before the next turn the follower catches up with what this one
has written, or the turn would decide from a state that it has changed itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from policy.controller.act import Actor, WorldChanged
from policy.controller.decide import KnownRollout, Turn, World, decide
from policy.metrics import CONTROLLER_TURN_SECONDS, CONTROLLER_TURNS, IS_LEADER
from policy.presence import first_of
from policy.records import RolloutRecord
from runtime.etcd import Election, EtcdError, Lease

if TYPE_CHECKING:
    from policy.controller.peers import PeerCalls
    from policy.follower import Follower
    from policy.records import Keys
    from runtime.etcd import EtcdClient, Leadership

log = structlog.get_logger(__name__)

RESYNC_SECONDS = 30.0
CATCH_UP_SECONDS = 2.0
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
    lease_ttl: timedelta = timedelta(seconds=10)
    is_leader: bool = False
    sentence: str = "waiting to be elected"
    """What the last turn decided, and why."""

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop`; survives anything that etcd does."""
        while not stop.is_set():
            try:
                async with Lease.grant(self.client, self.lease_ttl) as lease:
                    leadership = await self._campaign(lease, stop)
                    if leadership is not None:
                        await self._lead(leadership, stop)
            except EtcdError as error:
                log.warning("not leading", reason=f"{type(error).__name__}: {error}")
            finally:
                self._tell_leading(is_leader=False)
            if not stop.is_set():
                await first_of(stop, timeout=random.uniform(0.2, 1))  # noqa: S311 - jitter

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
        actor = Actor(self.client, self.keys, leadership, self.peers)
        failures: dict[str, str] = {}
        retry = FIRST_RETRY
        while leadership.is_leader and not stop.is_set():
            changed = self.follower.changed
            turn, failures = await self._turn(actor, failures)
            retry = min(MAX_RETRY, retry * 2) if turn is None or failures else FIRST_RETRY
            await self._catch_up(actor)
            if turn is not None and turn.actions and not failures:
                continue
            pause = RESYNC_SECONDS if turn is not None and turn.is_done else retry
            await first_of(stop, leadership.lease.done, changed, timeout=pause)
        if leadership.is_leader:
            await leadership.resign()

    async def _turn(self, actor: Actor, failures: dict[str, str]) -> tuple[Turn | None, dict[str, str]]:
        """One turn: what was decided (None when the world changed under it) and where acting failed."""
        started = time.perf_counter()
        rollouts = await self._running_rollouts()
        table, shards = self.follower.table, dict(self.follower.state.shards)
        mod_revision = self.follower.policy_mod_revision
        if table is None or self.follower.problem:
            return self._told(
                Turn((), f"no policy to act on: {self.follower.problem or 'none was applied yet'}", True)
            ), {}
        addresses = {idc: tuple(r.peer_address for r in them) for idc, them in self.follower.gateways.items()}
        await self.peers.keep_only({address for them in addresses.values() for address in them})
        now = datetime.now(UTC).isoformat()
        turn = self._told(decide(World(table.policy, shards, addresses, rollouts, failures, now)))
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

    async def _running_rollouts(self) -> tuple[KnownRollout, ...]:
        listing = await self.client.list(self.keys.rollouts)
        known = (KnownRollout(RolloutRecord.decode(item.value), item.mod_revision) for item in listing.items)
        return tuple(rollout for rollout in known if rollout.record.state == "running")

    async def _catch_up(self, actor: Actor) -> None:
        await self.follower.wait_seen(actor.store_revision, asyncio.get_running_loop().time() + CATCH_UP_SECONDS)

    def _tell_leading(self, *, is_leader: bool) -> None:
        self.is_leader = is_leader
        IS_LEADER.set(is_leader)
