"""The routing table: one policy and the owner of every shard at one revision of the store, immutable.

A request takes one table and decides by it to the end (law L6). A newer state is a new table that shares with the old
one all that has not changed. Three refusals keep an old number from winning: an older store revision, an older policy
revision and a lower epoch change nothing and are counted. A shard without a record, or with one that this release
cannot read, has no route: it is never guessed (law L8).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Self
from zlib import crc32

from policy.compile import unknown_region
from policy.errors import ShardUnavailable
from policy.model import Phase, Route
from policy.sharding import shard_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from policy.compile import Policy
    from policy.records import ShardRecord

Routes = tuple["Route | None", ...]
_PHASES = frozenset(Phase)
_NO_RECORDS: Mapping[int, ShardRecord] = MappingProxyType({})


class RoutingTable:
    """Who owns what, and by which law."""

    __slots__ = ("_records", "_routes", "policy", "refused", "store_revision")

    def __init__(
        self,
        policy: Policy,
        store_revision: int,
        records: Mapping[str, Mapping[int, ShardRecord]],
        routes: dict[str, Routes],
        refused: int,
    ) -> None:
        self.policy = policy
        self.store_revision = store_revision
        self.refused = refused
        """Older numbers refused in making this table and the ones before it."""
        self._records = records
        self._routes = routes

    @classmethod
    def build(cls, policy: Policy, shards: Iterable[tuple[str, int, ShardRecord]], store_revision: int) -> Self:
        """A table from everything that the store holds; a snapshot is taken as it is, epochs too."""
        records: dict[str, dict[int, ShardRecord]] = {}
        for region_code, shard, record in shards:
            records.setdefault(region_code, {})[shard] = record
        routes = {code: _routes(policy, code, records.get(code, _NO_RECORDS), ()) for code in policy.regions}
        return cls(policy, store_revision, records, routes, 0)

    def patch(
        self,
        *,
        store_revision: int,
        policy: Policy | None = None,
        shards: Iterable[tuple[str, int, ShardRecord | None]] = (),
    ) -> Self:
        """The table after the changes up to `store_revision`; None for a record means that it was deleted."""
        if store_revision < self.store_revision:
            return self._with_refused(1)
        refused = 0
        if policy is None or policy.revision < self.policy.revision:
            refused += policy is not None
            policy = self.policy
        records = dict(self._records)
        changed: dict[str, dict[int, ShardRecord]] = {}
        for region_code, shard, record in shards:
            if region_code not in changed:
                records[region_code] = changed[region_code] = dict(records.get(region_code, _NO_RECORDS))
            mine = changed[region_code]
            if record is None:
                mine.pop(shard, None)
            elif shard in mine and record.epoch < mine[shard].epoch:
                refused += 1
            else:
                mine[shard] = record
        routes = self._routes if policy is self.policy else self._recut(policy, records)
        touched = [code for code in changed if code in policy.regions]
        if touched:
            routes = {**routes, **{c: _routes(policy, c, records[c], self._routes.get(c, ())) for c in touched}}
        return type(self)(policy, store_revision, records, routes, self.refused + refused)

    def resolve(self, region_code: str, key: str | int) -> Route:
        """The route of the shard that holds the key.

        Raises:
            UnknownRegion: no residency rule covers the RegionCode.
            ShardUnavailable: the shard has no owner yet.
            InvalidValue: the key is not valid Unicode.
        """
        try:
            routes = self._routes[region_code]
            # This is `shard_of`, spelled out: the call would cost a third of the whole resolve.
            route = routes[(crc32(key.encode()) if isinstance(key, str) else key) % len(routes)]
        except (KeyError, UnicodeEncodeError):
            routes = self.routes_of(region_code)
            route = routes[shard_of(key, len(routes))]
        if route is None:
            raise _no_route(region_code, shard_of(key, len(routes)))
        return route

    def route(self, region_code: str, shard: int) -> Route | None:
        """The route of one shard; None when it has no owner yet or does not exist."""
        routes = self._routes.get(region_code, ())
        return routes[shard] if 0 <= shard < len(routes) else None

    def routes_of(self, region_code: str) -> Routes:
        """The routes of all shards of a RegionCode, by number; raises `UnknownRegion`."""
        try:
            return self._routes[region_code]
        except KeyError:
            raise unknown_region(region_code) from None

    def all_routes(self) -> Iterator[Route]:
        """Every route there is, by RegionCode in the policy's order, then by number."""
        for code in self.policy.regions:
            yield from (route for route in self._routes[code] if route is not None)

    def record(self, region_code: str, shard: int) -> ShardRecord | None:
        """What the store says of a shard, also of one that the policy does not cover."""
        return self._records.get(region_code, _NO_RECORDS).get(shard)

    def _recut(self, policy: Policy, records: Mapping[str, Mapping[int, ShardRecord]]) -> dict[str, Routes]:
        """The routes by another policy: made anew only where its number of shards is another."""
        routes: dict[str, Routes] = {}
        for code, residency in policy.regions.items():
            known = self._routes.get(code, ())
            is_same = len(known) == residency.shards
            routes[code] = known if is_same else _routes(policy, code, records.get(code, _NO_RECORDS), known)
        return routes

    def _with_refused(self, number: int) -> Self:
        return type(self)(self.policy, self.store_revision, self._records, self._routes, self.refused + number)


def _routes(policy: Policy, region_code: str, records: Mapping[int, ShardRecord], known: Routes) -> Routes:
    shards = policy.regions[region_code].shards
    padded = known[:shards] + (None,) * (shards - len(known))
    return tuple(_route(region_code, shard, records.get(shard), padded[shard]) for shard in range(shards))


def _route(region_code: str, shard: int, record: ShardRecord | None, known: Route | None) -> Route | None:
    if record is None or record.phase not in _PHASES or not record.owner:
        return None
    if known and (known.idc, known.epoch, known.phase) == (record.owner, record.epoch, record.phase):
        return known
    return Route(region_code, shard, record.owner, record.epoch, Phase(record.phase))


def _no_route(region_code: str, shard: int) -> ShardUnavailable:
    return ShardUnavailable(f"shard {shard} of {region_code} has no owner yet")
