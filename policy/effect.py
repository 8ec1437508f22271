"""When a policy revision is effective: no live gateway decides by an older one (law L6).

A gateway registers only under the policy that is current at that moment, so those that come after the revision was
stored decide by it. Those that were there before have a record, and it says the revision or goes away: see
`policy.presence`. So the revision is effective as soon as one state of the store, at or after the revision's own
transaction, has no record that says less. A record that cannot be read is waited for, too.

The records are listed again and again, not watched: the acknowledgements come while a watch would be opened, and one
that starts behind the store's newest revision is served by etcd ten times a second only.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policy.records import GatewayRecord
from runtime.etcd import EtcdUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.records import Keys
    from runtime.etcd import EtcdClient, KeyValue, Listing

SHORTEST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.25
PAUSE_SHARE: Final = 0.25
"""Of the time that has been waited already: so much longer at most does the whole take."""


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

    def take(self, listing: Listing) -> None:
        """Takes in the gateways' records as they are at one revision of the store."""
        self._seen = listing.revision
        self._records = {item.key: _decode(item) for item in listing.items}
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
    start = loop.time()
    account = Acknowledgements(keys, revision, store_revision)
    try:
        async with asyncio.timeout_at(deadline) as limit:
            while True:
                with suppress(EtcdUnavailable):  # then it cannot be known yet whether they have answered
                    account.take(await client.list(keys.gateways))
                effect = account.effect
                if effect.is_effective:
                    if not effect.schema_waiting_for:
                        return effect
                    limit.reschedule(min(limit.when() or deadline, deadline, loop.time() + schema_grace))
                waited = loop.time() - start
                await asyncio.sleep(min(LONGEST_PAUSE, max(SHORTEST_PAUSE, waited * PAUSE_SHARE)))
    except TimeoutError:
        pass
    return account.effect
