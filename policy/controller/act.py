"""Carries out what was decided: transactions on etcd and calls to the IDCs, nothing of its own choosing.

Every transaction compares the election: a controller that was paused and wakes up after another has taken over changes
nothing. Assignments also compare the policy that they were decided by, so that none can slip in after another policy
has become current; each shard's record is compared with the one that was seen.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from policy import move
from policy.audit.chain import AuditChain
from policy.audit.entry import Fact
from policy.controller.decide import SHARDS_PER_TRANSACTION, Assign, CallOff, NoteRollout, Open, Start
from policy.controller.ledger import now
from policy.controller.peers import OpeningFailed
from policy.model import Phase
from policy.records import MoveRecord, ShardRecord, SwitchRecord
from runtime.etcd import compare_create_revision, compare_mod_revision, put_op

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.cluster import KnownShard
    from policy.controller.decide import Action
    from policy.controller.orders import Orders
    from policy.controller.peers import PeerCalls
    from policy.records import Keys, RolloutRecord
    from runtime.etcd import Compare, EtcdClient, Leadership, Op

FIRST_EPOCH = 1


class WorldChanged(Exception):
    """Something is not as it was seen: look again, decide again."""


class Actor:
    """Acts for one leadership."""

    def __init__(
        self, client: EtcdClient, keys: Keys, leadership: Leadership, *, peers: PeerCalls, orders: Orders
    ) -> None:
        self._client = client
        self._orders = orders
        self._keys = keys
        self._audit = AuditChain(client, keys)
        self._leadership = leadership
        self._peers = peers
        self.order_mod_revision: int | None = None
        """Of the newest order that the actions were decided by; None: they rest on none."""
        self.store_revision = 0
        """Of the newest transaction; what is seen next should not be older."""

    async def perform(
        self, actions: Sequence[Action], shards: Mapping[tuple[str, int], KnownShard], policy_mod_revision: int
    ) -> dict[str, str]:
        """Performs the actions; returns the IDCs where one has failed, and why.

        `shards` and `policy_mod_revision` are what the actions were decided by.

        Raises:
            WorldChanged: a compare did not hold.
            EtcdError: etcd does not answer or refuses.
        """
        for action in actions:
            if isinstance(action, Assign):
                await self._assign(action, policy_mod_revision)
        openings = [action for action in actions if isinstance(action, Open)]
        # All IDCs at once: one that hangs does not hold up the others.
        results = await asyncio.gather(*(self._open(it, shards) for it in openings), return_exceptions=True)
        failures: dict[str, str] = {}
        for opening, result in zip(openings, results, strict=True):
            if isinstance(result, OpeningFailed):
                failures[opening.idc] = str(result)
            elif isinstance(result, BaseException):
                raise result
        for action in actions:
            if isinstance(action, CallOff):
                await self._call_off(action, shards[action.shard])
            elif isinstance(action, Start):
                await self._start(action, shards[action.shard])
        for action in actions:
            if isinstance(action, NoteRollout):
                await self._note(action)
        return failures

    async def _assign(self, action: Assign, policy_mod_revision: int) -> None:
        compares = [compare_mod_revision(self._keys.policy_current, policy_mod_revision)]
        if self.order_mod_revision is not None:
            compares.append(compare_mod_revision(self._keys.last_order, self.order_mod_revision))
        puts: list[Op] = []
        for region_code, shard, owner in action.owners:
            key = self._keys.shard(region_code, shard)
            record = ShardRecord(owner, FIRST_EPOCH, Phase.OPENING, action.policy_revision, rollout=action.rollout)
            compares.append(compare_create_revision(key, 0))
            puts.append(put_op(key, record.encode()))
        # A first owner is a change of an owner, too: who plans meanwhile plans again.
        region_code, shard, _ = action.owners[-1]
        puts.append(put_op(self._keys.last_switch, SwitchRecord(region_code, shard, FIRST_EPOCH).encode()))
        await self._transact(compares, puts)

    async def _open(self, action: Open, shards: Mapping[tuple[str, int], KnownShard]) -> None:
        epochs = {shard: shards[shard].record.epoch for shard in action.shards}
        refused = await self._peers.open_shards(action.peers, epochs)
        opened = [shard for shard in action.shards if shard not in refused]
        for start in range(0, len(opened), SHARDS_PER_TRANSACTION):
            compares: list[Compare] = []
            puts: list[Op] = []
            for region_code, shard in opened[start : start + SHARDS_PER_TRANSACTION]:
                key, known = self._keys.shard(region_code, shard), shards[region_code, shard]
                compares.append(compare_mod_revision(key, known.mod_revision))
                puts.append(put_op(key, replace(known.record, phase=Phase.SERVING).encode()))
            await self._transact(compares, puts)
        if refused:
            (region_code, shard), why = next(iter(refused.items()))
            raise OpeningFailed(f"{len(refused)} shards are not open (the first is {region_code}/{shard}: {why})")

    async def _start(self, action: Start, known: KnownShard) -> None:
        """Begins an attempt, while the rollout that wants it stands as it was seen."""
        rollout, mod_revision = action.rollout
        record = move.start(known.record, action.target, rollout.rollout, rollout.traceparent)
        movement = MoveRecord(
            rollout.rollout,
            *action.shard,
            record.owner,
            record.target,
            record.phase,
            record.attempt,
            start_time=now(),
            required_by_law=action.required_by_law,
        )
        await self._transact(
            [
                compare_mod_revision(self._keys.shard(*action.shard), known.mod_revision),
                compare_mod_revision(self._keys.rollout(rollout.rollout), mod_revision),
            ],
            [
                put_op(self._keys.shard(*action.shard), record.encode()),
                put_op(self._keys.move(rollout.rollout, *action.shard), movement.encode()),
            ],
        )

    async def _call_off(self, action: CallOff, known: KnownShard) -> None:
        """Calls a move off, unless it has passed its switch meanwhile."""
        record = move.advance(known.record, move.MoveEvent.CALLED_OFF)
        key, move_key = self._keys.shard(*action.shard), self._keys.move(record.rollout, *action.shard)
        puts = [put_op(key, record.encode())]
        if (item := await self._client.get(move_key)) is not None:
            movement = MoveRecord.decode(item.value)
            told = replace(movement, phase=record.phase, attempt=record.attempt, note=action.reason)
            puts.append(put_op(move_key, told.encode()))
        await self._transact([compare_mod_revision(key, known.mod_revision)], puts)

    async def _note(self, action: NoteRollout) -> None:
        """Writes down how far a rollout is; its end goes into the audit trail, too."""
        record = action.record
        key = self._keys.rollout(record.rollout)
        compares, puts = [compare_mod_revision(key, action.mod_revision)], [put_op(key, record.encode())]
        revision = await self._transact(compares, puts, _end_fact(record) if record.is_ended else None)
        self._orders.noted(record, revision)

    async def _transact(self, compares: Sequence[Compare], puts: Sequence[Op], fact: Fact | None = None) -> int:
        compares = [self._leadership.compare, *compares]
        if fact is None:
            result = await self._client.transact(compares, puts)
        else:
            result = await self._audit.transact(compares, puts, fact)
        if not result.succeeded:
            raise WorldChanged
        self.store_revision = max(self.store_revision, result.revision)
        return result.revision


def _end_fact(record: RolloutRecord) -> Fact:
    return Fact(
        "rollout",
        {
            "outcome": record.state,
            "rollout": record.rollout,
            "rollout_kind": record.kind,
            "policy_revision": record.policy_revision,
            "shards_total": record.shards_total,
            "shards_done": record.shards_done,
            "create_time": record.create_time,
            "end_time": record.end_time,
        },
    )
