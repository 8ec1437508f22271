"""A view of the law that a test moves by hand, in place of etcd's follower."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from policy.compile import compile_policy
from policy.loading import load_policy
from policy.model import Phase
from policy.records import GatewayRecord, ShardRecord
from policy.table import RoutingTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policy.compile import Policy

POLICY = """\
version: 1
idcs:
  sha: {jurisdiction: CN}
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
  sin: {jurisdiction: SG}
  lon: {jurisdiction: UK}
residency:
  - {name: china, regions: [CN], jurisdictions: [CN], idcs: {sha: 100}, shards: 2, transit: forbid}
  - {name: europe, regions: [DE, FR], jurisdictions: [EU, UK], idcs: {fra: 50, ams: 50}, shards: 4}
  - {name: asia, regions: [SG], jurisdictions: [SG], idcs: {sin: 100}, shards: 2}
access:
  - {name: eu-support, regions: [DE, FR], from: [SG], operations: [read], purposes: [support], withhold: [personal]}
  - {name: eu-entry, regions: [DE], from: [SG], operations: [write], purposes: [entry]}
  - {name: cn-audit, regions: [CN], from: [EU], operations: [read], purposes: [audit]}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
  counters:
    key: int64
    columns:
      n: {type: int64}
"""


def policy(text: str = POLICY, revision: int = 1) -> Policy:
    """The compiled policy."""
    return compile_policy(load_policy(text).document, revision)


def records(
    law: Policy, owners: Mapping[str, str], epoch: int = 1, phase: Phase = Phase.SERVING
) -> Iterable[tuple[str, int, ShardRecord]]:
    """A record for every shard of the RegionCodes in `owners`."""
    for code, owner in owners.items():
        for shard in range(law.regions[code].shards):
            yield code, shard, ShardRecord(owner, epoch, phase, law.revision)


OWNERS = {"CN": "sha", "DE": "fra", "FR": "ams", "SG": "sin"}


def table(law: Policy | None = None, owners: Mapping[str, str] = OWNERS, store_revision: int = 10) -> RoutingTable:
    """A table in which every shard is served."""
    law = law or policy()
    return RoutingTable.build(law, records(law, owners), store_revision)


class HandView:
    """A law that changes when the test says so."""

    def __init__(
        self, first: RoutingTable | None, gateways: Mapping[str, tuple[GatewayRecord, ...]] | None = None
    ) -> None:
        self.table = first
        self.gateways: Mapping[str, tuple[GatewayRecord, ...]] = gateways or {}
        self.is_fresh = True
        self.waiting = asyncio.Event()
        """Set while somebody waits for a newer table."""
        self.never_sleeps = False
        """Whether who waits must be woken by a newer table: it is a failure when a pause wakes it."""
        self._changed = asyncio.Event()

    def show(self, newer: RoutingTable) -> None:
        """Replaces the table."""
        self.table = newer
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def patch(
        self, *, store_revision: int, law: Policy | None = None, shards: Iterable[tuple[str, int, ShardRecord]] = ()
    ) -> None:
        """Replaces the table by a later one."""
        assert self.table is not None
        self.show(self.table.patch(store_revision=store_revision, policy=law, shards=shards))

    async def wait_beyond(self, store_revision: int, deadline: float) -> bool:
        """As the follower's."""
        self.waiting.set()
        if self.never_sleeps:
            deadline = asyncio.get_running_loop().time() + 10
        try:
            async with asyncio.timeout_at(deadline):
                while self.table is None or self.table.store_revision <= store_revision:
                    await self._changed.wait()
        except TimeoutError:
            assert not self.never_sleeps, "nothing but a newer table should have ended this wait"
            return False
        return True


def gateway(idc: str, name: str = "a", peer: str = "127.0.0.1:1", address: str = "127.0.0.1:2") -> GatewayRecord:
    """A live gateway."""
    return GatewayRecord(f"{idc}-{name}", idc, address, peer, 1, 1)
