"""When a policy revision is effective: no live gateway decides by an older one (law L6).

A gateway registers only under the policy that is current at that moment, so those that come after the revision was
stored decide by it. Those that were there before have a record, and it says the revision or goes away: see
`policy.presence`. So the revision is effective as soon as one state of the store, at or after the revision's own
transaction, has no record that says less. A record that cannot be read is waited for, too.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.records import GatewayRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.records import Keys
    from runtime.etcd import EtcdClient, FollowBatch, KeyValue


@dataclass(frozen=True, slots=True)
class Effect:
    """Who has answered."""

    is_effective: bool
    """Whether a state of the store at or after the revision's own transaction has shown nobody who is behind."""
    acknowledged: tuple[str, ...]
    """Live gateways that decide by the revision."""
    expired: tuple[str, ...]
    """Gateways whose record went away instead."""
    waiting_for: tuple[str, ...]
    """Live gateways that decide by an older one."""
    schema_waiting_for: tuple[str, ...]
    """IDCs whose database is not known to have the revision's datasets yet."""


class Acknowledgements:
    """Keeps account of the gateways' records for one revision."""

    def __init__(self, keys: Keys, revision: int, store_revision: int) -> None:
        self._keys = keys
        self._revision = revision
        self._store_revision = store_revision
        self._seen = 0
        self._records: dict[str, GatewayRecord | None] = {}
        self._lagging: dict[str, str] = {}
        """Key -> name, of every gateway that was seen with an older revision and has not acknowledged since."""

    def take(self, batch: FollowBatch) -> None:
        """Takes in the gateways' state or a change of it."""
        self._seen = batch.revision
        if batch.is_snapshot:
            self._records = {item.key: _decode(item) for item in batch.items}
        for event in batch.events:
            if event.kind == "put":
                self._records[event.item.key] = _decode(event.item)
            else:
                self._records.pop(event.item.key, None)
        for key, record in self._records.items():
            if record is not None and record.policy_revision >= self._revision:
                self._lagging.pop(key, None)
            else:
                self._lagging[key] = self._name(key)

    @property
    def effect(self) -> Effect:
        """Where things stand."""
        known = [record for record in self._records.values() if record is not None]
        return Effect(
            is_effective=self._seen >= self._store_revision and not self._lagging.keys() & self._records.keys(),
            acknowledged=_sorted(r.gateway for r in known if r.policy_revision >= self._revision),
            expired=_sorted(name for key, name in self._lagging.items() if key not in self._records),
            waiting_for=_sorted(name for key, name in self._lagging.items() if key in self._records),
            schema_waiting_for=_sorted(r.idc for r in known if r.schema_revision < self._revision),
        )

    def _name(self, key: str) -> str:
        record = self._records[key]
        return record.gateway if record is not None else key.removeprefix(self._keys.gateways)


def _decode(item: KeyValue) -> GatewayRecord | None:
    try:
        return GatewayRecord.decode(item.value)
    except ValueError:
        return None


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


async def wait_effective(
    client: EtcdClient,
    keys: Keys,
    revision: int,
    store_revision: int,
    *,
    deadline: float,
    schema_grace: float,
) -> Effect:
    """Waits until the revision is effective, or the loop's clock reaches `deadline`; tells who has answered.

    `store_revision` is where the revision became current. Databases get `schema_grace` seconds more to follow, no
    longer: one that is down does not hold up the law.
    """
    loop = asyncio.get_running_loop()
    account = Acknowledgements(keys, revision, store_revision)
    try:
        async with asyncio.timeout_at(deadline) as limit, aclosing(client.follow(keys.gateways)) as batches:
            async for batch in batches:
                account.take(batch)
                effect = account.effect
                if not effect.is_effective:
                    continue
                if not effect.schema_waiting_for:
                    return effect
                limit.reschedule(min(limit.when() or deadline, deadline, loop.time() + schema_grace))
    except TimeoutError:
        pass
    return account.effect
