"""A cluster in a real etcd, with the policy parts of gateways in it, for tests."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from policy.apply import Applied, Draft, apply_policy
from policy.follower import Follower
from policy.presence import Presence
from policy.store import PolicyStore
from runtime.etcd import EtcdClient, EtcdSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from policy.records import Keys

POLICY = """\
version: 1
idcs:
  sha: {jurisdiction: CN}
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
  sin: {jurisdiction: SG}
groups:
  EU: [DE, FR]
residency:
  - {name: china, regions: [CN], jurisdictions: [CN], idcs: {sha: 100}, shards: 4}
  - {name: europe, regions: [EU], jurisdictions: [EU], idcs: {fra: 50, ams: 50}, shards: 4}
  - {name: asia, regions: [SG], jurisdictions: [SG], idcs: {sin: 100}, shards: 4}
access:
  - {name: eu-support, regions: [EU], from: [SG], operations: [read], purposes: [support], withhold: [personal]}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
"""
WITHOUT_SUPPORT = POLICY.replace("from: [SG], operations", "from: [CN], operations")
WITH_EMAIL = POLICY + "      email: {type: string, class: personal}\n"
OTHER_WEIGHTS = POLICY.replace("fra: 50, ams: 50", "fra: 75, ams: 25")


def settings(endpoint: str) -> EtcdSettings:
    """A client that does not wait long."""
    return EtcdSettings((endpoint,), attempt_timeout=timedelta(seconds=0.5), request_timeout=timedelta(seconds=1.5))


@dataclass
class Cluster:
    """One cluster's keys, and a client of an admin."""

    client: EtcdClient
    keys: Keys
    store: PolicyStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = PolicyStore(self.client, self.keys)

    async def apply(self, document: str = POLICY, *, seconds: float = 10, **words: object) -> Applied:
        """Applies a policy."""
        return await apply_policy(
            self.store, Draft(document, **words), deadline=deadline(seconds), schema_grace=timedelta(0)
        )


@dataclass
class Member:
    """What a gateway has of the policy."""

    follower: Follower
    presence: Presence

    @property
    def revision(self) -> int:
        """The policy revision that it decides by."""
        return self.follower.table.policy.revision if self.follower.table else 0


def deadline(seconds: float = 10) -> float:
    """A time on the loop's clock."""
    return asyncio.get_running_loop().time() + seconds


async def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until the condition holds; fails when it does not in time."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come to pass in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def member(
    endpoint: str, keys: Keys, name: str = "fra-1", *, ttl: float = 2, probe: float = 0.3, register: bool = True
) -> AsyncIterator[Member]:
    """A gateway's follower and presence, registered unless told otherwise."""
    async with EtcdClient(settings(endpoint)) as client:
        follower = Follower(client, keys, probe_every=timedelta(seconds=probe))
        presence = Presence(
            client,
            keys,
            follower,
            gateway=name,
            idc=name.partition("-")[0],
            address="127.0.0.1:1",
            peer_address="127.0.0.1:2",
            ttl=timedelta(seconds=ttl),
        )
        await follower.start()
        try:
            if register:
                await presence.start()
                assert await presence.wait_registered(deadline())
            yield Member(follower, presence)
        finally:
            await presence.stop()
            await follower.stop()
