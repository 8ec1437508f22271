"""The rollouts that have not ended, and their plans, as etcd has them now.

The routing table's follower serves gateways, which have no use for rollouts; so the controller follows these itself. A
plan never changes, so it is read once.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog

from policy.cluster import KnownRollout
from policy.records import PlanRecord, RolloutRecord
from runtime.etcd import EtcdError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.records import Keys
    from runtime.etcd import EtcdClient, KeyValue

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 0.5


class Orders:
    """Follows the rollouts of one cluster."""

    def __init__(self, client: EtcdClient, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._rollouts: dict[str, KnownRollout] = {}
        self._plans: dict[str, PlanRecord] = {}
        self.rollouts: tuple[KnownRollout, ...] = ()
        """Those that have not ended, oldest first: as of one revision of the store, and never without their plans."""
        self.plans: Mapping[str, PlanRecord] = {}
        self.changed = asyncio.Event()
        """Set at the next change, and replaced by a new one."""
        self.loaded = asyncio.Event()
        """Set once all rollouts have been seen."""

    async def run(self) -> None:
        """Follows for ever; survives anything that etcd does."""
        while True:
            try:
                async with aclosing(self._client.follow(self._keys.rollouts)) as batches:
                    async for batch in batches:
                        if batch.is_snapshot:
                            self._rollouts.clear()
                        for item in batch.items:
                            self._take(item)
                        for event in batch.events:
                            if event.kind == "put":
                                self._take(event.item)
                        await self._read_plans()
                        self._notify()
            except EtcdError as error:
                log.warning("following the rollouts anew", reason=f"{type(error).__name__}: {error}")
                await asyncio.sleep(_RETRY_SECONDS)

    async def read_drained(self) -> tuple[frozenset[str], int]:
        """IDCs that are to be emptied, and the revision of the newest order: no later one has changed that.

        Raises:
            EtcdError: etcd does not answer.
        """
        order, revision = await self._client.get_at(self._keys.last_order)
        drained = await self._client.list(self._keys.drained, revision=revision)
        idcs = frozenset(item.key.removeprefix(self._keys.drained) for item in drained.items)
        return idcs, order.mod_revision if order is not None else 0

    def noted(self, record: RolloutRecord, mod_revision: int) -> None:
        """Takes in what this process has just written itself, ahead of its event."""
        known = self._rollouts.get(record.rollout)
        if known is not None and known.mod_revision < mod_revision:
            self._put(record, mod_revision)
            self._publish()

    def _take(self, item: KeyValue) -> None:
        try:
            record = RolloutRecord.decode(item.value)
        except ValueError as error:
            log.warning("unreadable rollout in the policy store", key=item.key, error=str(error))
            return
        known = self._rollouts.get(record.rollout)
        if known is None or known.mod_revision < item.mod_revision:
            self._put(record, item.mod_revision)

    def _put(self, record: RolloutRecord, mod_revision: int) -> None:
        if record.is_ended:
            self._rollouts.pop(record.rollout, None)
            self._plans.pop(record.rollout, None)
        else:
            self._rollouts[record.rollout] = KnownRollout(record, mod_revision)

    async def _read_plans(self) -> None:
        for rollout in self._rollouts.keys() - self._plans.keys():
            item = await self._client.get(self._keys.plan(rollout))
            # A first policy moves nothing, and has no plan.
            self._plans[rollout] = PlanRecord.decode(item.value) if item is not None else PlanRecord(rollout)

    def _publish(self) -> None:
        known = (it for it in self._rollouts.values() if it.record.rollout in self._plans)
        self.rollouts = tuple(sorted(known, key=lambda it: it.record.create_time))
        self.plans = dict(self._plans)

    def _notify(self) -> None:
        self._publish()
        self.loaded.set()
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
