"""The records of one cluster as a process knows them: current policy, shards and gateways, fed batch by batch.

Plain bookkeeping without I/O. A snapshot replaces everything and reports only what differs from what was known, so that
a periodic listing costs nothing when nothing was lost. A record that cannot be read counts as absent: no owner is
guessed for a shard (law L8), and a gateway that cannot be read is still waited for by `apply` (law L6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import structlog

from policy.feed import Change
from policy.records import CurrentPolicy, GatewayRecord, ShardRecord

if TYPE_CHECKING:
    from policy.feed import FeedBatch
    from policy.records import Keys, RolloutRecord
    from runtime.etcd import KeyValue

log = structlog.get_logger(__name__)


class KnownShard(NamedTuple):
    """A shard's record, and the revision to compare with when it is to be changed."""

    record: ShardRecord
    mod_revision: int


class KnownRollout(NamedTuple):
    """A rollout that has not ended, and the revision to compare with when it is to be changed."""

    record: RolloutRecord
    mod_revision: int


class KnownPolicy(NamedTuple):
    """Which revision is current, and since when."""

    revision: int
    mod_revision: int


@dataclass(slots=True)
class Difference:
    """What a batch changed."""

    policy: bool = False
    gateways: bool = False
    shards: dict[tuple[str, int], ShardRecord | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.policy or self.gateways or bool(self.shards)


class ClusterState:
    """What is known; changes in place, so read it without an await between."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.sections = (keys.policy_current, keys.shards, keys.gateways)
        """What must be listed to know the state."""
        self.policy: KnownPolicy | None = None
        self.shards: dict[tuple[str, int], KnownShard] = {}
        self.gateways: dict[str, GatewayRecord] = {}
        """By key."""

    def take(self, batch: FeedBatch) -> Difference:
        """Takes a batch in."""
        difference = Difference()
        changes = batch.changes
        if batch.is_snapshot:
            present = {change.key for change in changes}
            changes = (*(Change(key, None) for key in self._known_keys() - present), *changes)
        for change in changes:
            self._take(change, difference)
        return difference

    def _known_keys(self) -> set[str]:
        keys = {self._keys.shard(region_code, shard) for region_code, shard in self.shards} | self.gateways.keys()
        return keys | {self._keys.policy_current} if self.policy else keys

    def _take(self, change: Change, difference: Difference) -> None:
        key, item = change
        try:
            if key == self._keys.policy_current:
                self._take_policy(item, difference)
            elif key.startswith(self._keys.shards):
                self._take_shard(self._keys.parse_shard(key), item, difference)
            elif key.startswith(self._keys.gateways):
                self._take_gateway(key, item, difference)
        except ValueError as error:
            # Names of keys hold RegionCodes and shard numbers, never a row's key (law L1).
            log.warning("unreadable record in the policy store", key=key, error=str(error))

    def _take_policy(self, item: KeyValue | None, difference: Difference) -> None:
        known = KnownPolicy(CurrentPolicy.decode(item.value).revision, item.mod_revision) if item else None
        difference.policy |= known != self.policy
        self.policy = known

    def _take_shard(self, shard: tuple[str, int], item: KeyValue | None, difference: Difference) -> None:
        before = self.shards.pop(shard, None)
        if item is not None and before is not None and before.mod_revision == item.mod_revision:
            self.shards[shard] = before
            return
        if before is not None:
            difference.shards[shard] = None
        if item is not None:
            record = ShardRecord.decode(item.value)
            self.shards[shard] = KnownShard(record, item.mod_revision)
            difference.shards[shard] = record

    def _take_gateway(self, key: str, item: KeyValue | None, difference: Difference) -> None:
        before = self.gateways.pop(key, None)
        if item is not None:
            self.gateways[key] = GatewayRecord.decode(item.value)
        difference.gateways |= before != self.gateways.get(key)

    def gateways_by_idc(self) -> dict[str, tuple[GatewayRecord, ...]]:
        """Live gateways of each IDC, ordered by name."""
        grouped: dict[str, list[GatewayRecord]] = {}
        for key in sorted(self.gateways):
            record = self.gateways[key]
            grouped.setdefault(record.idc, []).append(record)
        return {idc: tuple(records) for idc, records in grouped.items()}
