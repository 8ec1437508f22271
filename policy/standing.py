"""What every plan and every order rests on, read from etcd at one revision of the store, and how to hold on to it.

Between reading and storing, a shard may switch, a policy may be applied, or somebody else may give an order. So what is
stored compares the marks that each of these leaves (`guards`); when one has moved, it is read and decided again. The
controller's notes on a rollout are no such mark: they change nothing that is decided here.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policy.cluster import KnownRollout
from policy.errors import LimitReached, PolicyRejected, RevisionNotFound, StoreUnavailable
from policy.follower import load_stored
from policy.intent import Standing, wanted_moves
from policy.records import (
    CurrentPolicy,
    DrainRecord,
    OrderRecord,
    PlanRecord,
    PolicyRevision,
    RolloutRecord,
    ShardRecord,
)
from policy.store import Base, told_as_ours
from runtime.etcd import EtcdCompacted, compare_mod_revision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.compile import Policy
    from policy.intent import Shard
    from policy.store import PolicyStore
    from runtime.etcd import Compare, KeyValue, Listing

MAX_OPEN_ROLLOUTS: Final = 64
"""Rollouts that may be open at a time: a new policy ends all of them in one transaction."""
MAX_TRIES: Final = 60
"""How often something is decided again before the caller is told that too much is changing."""
_LONGEST_PAUSE: Final = 0.1
_READ_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one revision of the store, as far as it is planned from."""

    base: Base
    shards: Mapping[Shard, ShardRecord]
    standing: Standing
    rollouts: tuple[KnownRollout, ...]
    """Those that have not ended, oldest first."""
    plans: Mapping[str, PlanRecord]
    """Of those rollouts."""
    order: OrderRecord
    """The newest one."""
    guards: tuple[Compare, ...]
    """Hold as long as no shard has changed its owner and nobody has given an order."""


async def read_snapshot(store: PolicyStore) -> Snapshot:
    """The cluster as it is now.

    Raises:
        StoreUnavailable: etcd does not answer.
    """
    for _ in range(_READ_ROUNDS):
        try:
            with told_as_ours():
                return await _read(store)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, EtcdCompacted):
                raise
    raise StoreUnavailable("the policy store compacts faster than it can be read")


async def pause(tries: int) -> None:
    """Waits a moment before something is decided again.

    Raises:
        StoreUnavailable: it has been tried too often.
    """
    if tries >= MAX_TRIES:
        raise StoreUnavailable("owners and orders change faster than a plan can be stored; try again")
    await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.002 * tries)))  # noqa: S311 (no secret)


def check_room(snapshot: Snapshot) -> None:
    """Raises `LimitReached` when as many rollouts are open as may be."""
    if len(snapshot.rollouts) >= MAX_OPEN_ROLLOUTS:
        message = f"{MAX_OPEN_ROLLOUTS} rollouts are open: wait until one has ended, or cancel one"
        raise LimitReached(message, limit="open rollouts")


def compiled(base: Base) -> Policy | None:
    """The current policy; None before the first. Raises `StoreUnavailable` when this release cannot read it."""
    try:
        return load_stored(base.current) if base.current else None
    except (ValueError, PolicyRejected) as error:
        raise StoreUnavailable("this release cannot read the current policy, so it can plan no step from it") from error


async def _read(store: PolicyStore) -> Snapshot:
    keys, client = store.keys, store.client
    switch, revision = await client.get_at(keys.last_switch)
    names = (keys.policy_current, keys.shards, keys.rollouts, keys.drained, keys.last_order)
    current, shards, rollouts, drained, order = await asyncio.gather(
        *(client.list(name, revision=revision) for name in names)
    )
    is_open = [
        KnownRollout(record, item.mod_revision)
        for item in sorted(rollouts.items, key=lambda item: item.create_revision)
        if not (record := RolloutRecord.decode(item.value)).is_ended
    ]
    plans = await _plans(store, [it.record.rollout for it in is_open])
    records = {keys.parse_shard(item.key): ShardRecord.decode(item.value) for item in shards.items}
    owners = {shard: record.owner for shard, record in records.items()}
    newest = _only(order, keys.last_order)
    return Snapshot(
        await _base(store, _only(current, keys.policy_current)),
        records,
        Standing(
            owners,
            wanted_moves([it.record for it in is_open], plans, owners),
            frozenset(DrainRecord.decode(item.value).idc for item in drained.items),
        ),
        tuple(is_open),
        plans,
        OrderRecord.decode(newest.value) if newest else OrderRecord(0),
        (
            compare_mod_revision(keys.last_switch, switch.mod_revision if switch else 0),
            compare_mod_revision(keys.last_order, newest.mod_revision if newest else 0),
        ),
    )


async def _plans(store: PolicyStore, rollouts: Sequence[str]) -> dict[str, PlanRecord]:
    """Plans never change, so it does not matter when they are read; a rollout without moves may have none."""
    items = await asyncio.gather(*(store.client.get(store.keys.plan(rollout)) for rollout in rollouts))
    return {
        rollout: PlanRecord.decode(item.value) if item else PlanRecord(rollout)
        for rollout, item in zip(rollouts, items, strict=True)
    }


async def _base(store: PolicyStore, item: KeyValue | None) -> Base:
    if item is None:
        return Base(None, 0)
    record = await store.client.get(store.keys.policy_revision(number := CurrentPolicy.decode(item.value).revision))
    if record is None:
        raise RevisionNotFound(f"there is no policy revision {number}")
    return Base(PolicyRevision.decode(record.value), item.mod_revision)


def _only(listing: Listing, key: str) -> KeyValue | None:
    return next((item for item in listing.items if item.key == key), None)
