"""The client's picture of who owns which shard and where gateways listen: pure, fed by `WatchRoutes`.

It may be old at any moment; that costs a hop or a redirect and never lawfulness, because the owner judges every call
by its own table and its own fence (laws L2, L6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.client.model import DatasetColumns, RouteChange, ShardOwner
from policy.errors import ShardUnavailable, UnknownRegion
from policy.sharding import shard_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from regiongate.v1 import routing_service_pb2

HOME = ""
"""In place of an owner's name: the home gateway knows better."""

_NO_TYPES: Mapping[str, str] = {}


class Routes:
    """Owners by shard, endpoints by IDC, datasets by name."""

    def __init__(self, *, direct: bool = True) -> None:
        self._direct = direct
        self._next: dict[str, list[str]] = {}
        """RegionCode -> where to go, by shard: an IDC or `HOME`."""
        self._owners: dict[tuple[str, int], ShardOwner] = {}
        self._endpoints: dict[str, tuple[str, ...]] = {}
        self._types: dict[str, Mapping[str, str]] = {}
        self._key_types: dict[str, str] = {}
        self.home_idc = ""
        self.home_address = ""
        """The gateway that tells the news."""
        self.policy_revision = 0
        self.store_revision = 0

    def apply(self, news: routing_service_pb2.WatchRoutesResponse) -> RouteChange:
        """Takes in one message and tells what it said."""
        if news.snapshot:
            for known in (self._next, self._owners, self._endpoints, self._types, self._key_types):
                known.clear()
        self.policy_revision = news.policy_revision
        self.store_revision = news.store_revision
        self.home_idc = news.home_idc or self.home_idc
        for region in news.regions:
            self._set_region(region.region_code, region.shards)
        for idc in news.idcs:
            self._endpoints[idc.idc] = tuple(idc.endpoints)
        for dataset in news.datasets:
            self._types[dataset.dataset] = dict(dataset.column_types)
            self._key_types[dataset.dataset] = dataset.key_type
        told = tuple(ShardOwner(r.region_code, r.shard, r.idc, r.epoch, r.phase) for r in news.routes)
        for owner in told:
            self._set_owner(owner)
        return RouteChange(news.snapshot, self.policy_revision, self.store_revision, self.home_idc, told)

    def _set_region(self, region_code: str, shards: int) -> None:
        known = self._next.get(region_code)
        if known is None or len(known) != shards:
            self._next[region_code] = [HOME] * shards

    def _set_owner(self, owner: ShardOwner) -> None:
        self._owners[owner.region_code, owner.shard] = owner
        shards = self._next.get(owner.region_code)
        if shards is not None and 0 <= owner.shard < len(shards):
            shards[owner.shard] = owner.idc if self._direct else HOME

    def learn(self, region_code: str, key: str | int, idc: str, endpoints: Iterable[str]) -> None:
        """Notes the owner that a gateway has named, until the next news of that shard."""
        shards = self._next.get(region_code)
        if not idc or not shards:
            return
        shards[shard_of(key, len(shards))] = idc
        self.learn_endpoints(idc, endpoints)

    def learn_endpoints(self, idc: str, endpoints: Iterable[str]) -> None:
        """Notes where an IDC is reached, unless its own news are here already."""
        if not self._endpoints.get(idc):
            self._endpoints[idc] = tuple(endpoints)

    def next_hop(self, region_code: str, key: str | int) -> str:
        """The IDC to go to, or `HOME`."""
        shards = self._next.get(region_code)
        return shards[shard_of(key, len(shards))] if shards else HOME

    def by_next_hop(self, places: Sequence[tuple[str, str | int]], indexes: Iterable[int]) -> dict[str, list[int]]:
        """Indexes of places (RegionCode and key) by where to go."""
        groups: dict[str, list[int]] = {}
        hops = self._next
        for index in indexes:
            region_code, key = places[index]
            shards = hops.get(region_code)
            hop = shards[shard_of(key, len(shards))] if shards else HOME
            if hop in groups:
                groups[hop].append(index)
            else:
                groups[hop] = [index]
        return groups

    def shard_of(self, region_code: str, key: str | int) -> int:
        """The shard's number; 0 for a RegionCode that is not known here."""
        shards = self._next.get(region_code)
        return shard_of(key, len(shards)) if shards else 0

    def shard_counts(self) -> dict[str, int]:
        """Into how many shards each RegionCode is cut."""
        return {region_code: len(shards) for region_code, shards in self._next.items()}

    def owner_of(self, region_code: str, key: str | int) -> ShardOwner:
        """Who owns the key's shard, as far as is known here.

        Raises:
            UnknownRegion: No residency rule covers the RegionCode.
            ShardUnavailable: The shard has no owner yet.
        """
        shards = self._next.get(region_code)
        if not shards:
            raise UnknownRegion("no residency rule covers this region_code", field_name="region_code")
        owner = self._owners.get((region_code, shard_of(key, len(shards))))
        if owner is None:
            raise ShardUnavailable(f"a shard of {region_code} has no owner yet")
        return owner

    def endpoints_of(self, idc: str) -> tuple[str, ...]:
        """Where the IDC's live gateways listen for clients."""
        return self._endpoints.get(idc, ())

    def all_endpoints(self) -> set[str]:
        """Every live gateway's address."""
        return {address for addresses in self._endpoints.values() for address in addresses}

    def types_of(self, dataset: str) -> Mapping[str, str]:
        """Column -> type; empty for a dataset that is not known here."""
        return self._types.get(dataset, _NO_TYPES)

    def datasets(self) -> dict[str, DatasetColumns]:
        """Every dataset by name."""
        return {name: DatasetColumns(name, self._key_types[name], types) for name, types in self._types.items()}

    def snapshot(self) -> RouteChange:
        """All that is known, as one change."""
        return RouteChange(True, self.policy_revision, self.store_revision, self.home_idc, tuple(self._owners.values()))
