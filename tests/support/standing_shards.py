"""What the controller leaves in the store, put there by hand: owners, switches and ended rollouts, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from policy import move
from policy.audit.chain import AuditChain
from policy.follower import load_stored
from policy.intent import intended_owners
from policy.records import MoveRecord, PlanRecord, RolloutRecord, ShardRecord, SwitchRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.cluster import Cluster


async def assign_all(cluster: Cluster) -> dict[tuple[str, int], str]:
    """Gives every shard the owner that the current policy intends, and ends the open rollouts."""
    policy = load_stored(await cluster.store.revision())
    owners = await cluster.store.owners()
    intended = intended_owners(policy, owners)
    for (code, shard), owner in intended.items():
        if (code, shard) not in owners:
            record = ShardRecord(owner, 1, "serving", policy.revision)
            await cluster.client.put(cluster.keys.shard(code, shard), record.encode())
            await cluster.client.put(cluster.keys.last_switch, SwitchRecord(code, shard, 1).encode())
    for rollout in await cluster.store.rollouts():
        await end_rollout(cluster, rollout)
    return intended


async def end_rollout(cluster: Cluster, record: RolloutRecord, state: str = "done") -> None:
    """Notes that a rollout has ended."""
    if not record.is_ended:
        ended = replace(record, state=state, shards_done=record.shards_total, end_time="2026-01-01T00:00:00+00:00")
        await cluster.client.put(cluster.keys.rollout(record.rollout), ended.encode())


async def read_shard(cluster: Cluster, code: str, shard: int) -> ShardRecord:
    """The shard's record."""
    item = await cluster.client.get(cluster.keys.shard(code, shard))
    return ShardRecord.decode(item.value)


async def switch(cluster: Cluster, code: str, shard: int, target: str, rollout: str = "r1") -> None:
    """Brings a shard over its switch to another owner; its old rows wait to be purged."""
    record = move.start(await read_shard(cluster, code, shard), target, rollout, "")
    for event in (move.MoveEvent.COPIED, move.MoveEvent.DRAINED):
        record = move.advance(record, event)
    record = move.advance(move.switch(record, 0, ""), move.MoveEvent.OPENED)
    await cluster.client.put(cluster.keys.shard(code, shard), record.encode())
    await cluster.client.put(cluster.keys.last_switch, SwitchRecord(code, shard, record.epoch).encode())


class Interrupted(AuditChain):
    """Lets something happen once, right before the next transaction is sent."""

    def __init__(self, cluster: Cluster, happening: Callable[[], Awaitable[object]]) -> None:
        super().__init__(cluster.client, cluster.keys)
        self._happening: Callable[[], Awaitable[object]] | None = happening

    async def transact(self, *args, **words):
        """The transaction, late by that."""
        happening, self._happening = self._happening, None
        if happening is not None:
            await happening()
        return await super().transact(*args, **words)


async def plan_of(cluster: Cluster, rollout: str) -> PlanRecord:
    """The stored plan of a rollout."""
    item = await cluster.client.get(cluster.keys.plan(rollout))
    return PlanRecord.decode(item.value)


async def carry_out(cluster: Cluster, rollout: str) -> None:
    """Plays the controller for one rollout: every move copies, switches and ends, then the rollout does."""
    stamp = "2026-01-01T00:00:00+00:00"
    for planned in (await plan_of(cluster, rollout)).moves:
        shard = planned.region_code, planned.shard
        move_record = MoveRecord(
            rollout, *shard, planned.source, planned.target, "copying", 1, rows=700, rows_per_second=90.0, remaining=5
        )
        await cluster.client.put(cluster.keys.move(rollout, *shard), move_record.encode())
        await switch(cluster, *shard, planned.target, rollout)
        record = replace(await read_shard(cluster, *shard), leftovers=(), phase="serving")
        await cluster.client.put(cluster.keys.shard(*shard), record.encode())
        done = replace(move_record, phase="done", rows=1234, stall_ms=41.6, switch_time=stamp, end_time=stamp)
        await cluster.client.put(cluster.keys.move(rollout, *shard), done.encode())
    record = await cluster.store.rollout(rollout)
    await end_rollout(cluster, record, "cancelled" if record.state == "cancelling" else "done")
    await assign_all(cluster)


async def carry_out_all(cluster: Cluster) -> None:
    """Plays the controller until it is cancelled."""
    async for batch in cluster.client.follow(cluster.keys.rollouts):
        for item in (*batch.items, *(event.item for event in batch.events)):
            record = RolloutRecord.decode(item.value)
            if not record.is_ended and record.state != "paused":
                await carry_out(cluster, record.rollout)
