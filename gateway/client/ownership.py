"""Which shards this IDC owns, for programs that do their work themselves and are run by nobody (U1, U8).

A `ShardSet` is fixed: whoever finds a start, filters rows and saves a position by one of them has one picture all the
way (U9). A program works by the newest set, drops what it does when another one comes, and goes on by that.

A shard is in the set while this IDC owns it and accepts its writes; so it leaves the set when its move begins to drain,
before any other IDC has it. It never comes back at an older epoch, however far behind the gateway is that tells it. But
the picture may be a moment old, and it fences nothing: what must not happen twice is a job's work, or a conditional
write's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from gateway.client.connections import Connections
from gateway.client.following import Follower
from gateway.client.model import ClientSettings
from gateway.client.opening import parse_target
from gateway.client.routes import Routes
from policy.errors import RegiongateError, UnknownRegion
from policy.move import WRITABLE
from policy.sharding import shard_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
    from types import TracebackType

    from gateway.client.model import RouteChange, ShardOwner, TlsFiles

Place = tuple[str, int]
"""RegionCode and number of a shard."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardSet:
    """The shards (RegionCode, number) that an IDC owned at one moment; an immutable set of them.

    Each change makes another object: `ownership.shards is shard_set` says whether it is still the newest.
    """

    idc: str
    policy_revision: int
    """Of the policy that it was made under; later ones may have left it as it is."""
    shards: frozenset[Place]
    shard_counts: Mapping[str, int]
    """Into how many shards each RegionCode is cut, whoever owns them."""

    def __contains__(self, shard: object) -> bool:
        return shard in self.shards

    def __iter__(self) -> Iterator[Place]:
        return iter(sorted(self.shards))

    def __len__(self) -> int:
        return len(self.shards)

    def owns(self, region_code: str, key: str | int) -> bool:
        """Whether the key's shard is in the set.

        Raises:
            UnknownRegion: No residency rule covers the RegionCode.
            InvalidValue: The key is not Unicode.
        """
        count = self.shard_counts.get(region_code)
        if count is None:
            raise UnknownRegion("no residency rule covers this region_code", field_name="region_code")
        return (region_code, shard_of(key, count)) in self.shards


class OwnedShards:
    """Makes shard sets of the news of routes; pure."""

    def __init__(self, regions: frozenset[str]) -> None:
        self.newest = ShardSet("", 0, frozenset(), {})
        self._regions = regions
        self._held: dict[Place, int] = {}
        """Shards of the set, and the epochs at which they are held."""
        self._epochs: dict[Place, int] = {}
        """The newest epoch of each shard that was ever told."""

    def take(self, change: RouteChange, shard_counts: Mapping[str, int] | None) -> bool:
        """Takes in what was told; `shard_counts` is None while they are as they were. Returns whether the set changed.

        A shard that has been elsewhere in between is another one: its epoch says so.
        """
        held = {} if change.is_snapshot else self._held.copy()
        for owner in change.routes:
            place = (owner.region_code, owner.shard)
            if self._is_ours(place, owner, change.home_idc):
                held[place] = owner.epoch
            else:
                held.pop(place, None)
        newest = self.newest
        counts = newest.shard_counts if shard_counts is None else shard_counts
        if (held, counts, change.home_idc) == (self._held, newest.shard_counts, newest.idc):
            return False
        self._held = held
        self.newest = ShardSet(change.home_idc, change.policy_revision, frozenset(held), counts)
        return True

    def _is_ours(self, place: Place, owner: ShardOwner, idc: str) -> bool:
        newest = self._epochs.get(place, 0)
        self._epochs[place] = max(newest, owner.epoch)
        return (
            owner.idc == idc
            and owner.epoch >= newest
            and owner.phase in WRITABLE
            and (not self._regions or owner.region_code in self._regions)
        )


class Ownership:
    """Follows which shards the IDC of its gateway owns: `async with regiongate.Ownership("host:port") as ownership`."""

    def __init__(
        self,
        target: str,
        *,
        regions: Iterable[str] = (),
        tls: TlsFiles | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        """Takes the same as `regiongate.connect`, and what to follow.

        Args:
            target: Gateways of one IDC, host:port by comma: the IDC whose shards these are.
            regions: RegionCodes; shards of others are never in the set. All when empty.
            tls: Files for TLS; plaintext when None.
            settings: In place of `tls`.
        """
        self._targets = parse_target(target)
        self._regions = frozenset(regions)
        self._settings = settings or ClientSettings(tls=tls)
        self._routes = Routes()
        self._owned = OwnedShards(self._regions)
        self._changed = asyncio.Event()
        self._is_closed = False
        self._error: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Waits until a gateway has told its routes.

        Raises:
            UnknownRegion: No residency rule covers one of `regions`.
            RegiongateError: No gateway of the target answers.
        """
        started = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(started), name="ownership")
        try:
            await started
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def idc(self) -> str:
        """The IDC whose shards these are."""
        return self.shards.idc

    @property
    def shards(self) -> ShardSet:
        """The newest set."""
        return self._owned.newest

    def owns(self, region_code: str, key: str | int) -> bool:
        """Whether this IDC owns the row now, answered at once; see `ShardSet.owns`."""
        return self.shards.owns(region_code, key)

    def __aiter__(self) -> AsyncIterator[ShardSet]:
        """The newest set, then each that replaces it; whoever is slow gets the newest only. Ends with the ownership."""
        return self._sets()

    async def _sets(self) -> AsyncGenerator[ShardSet]:
        told: ShardSet | None = None
        while not self._is_closed:
            if self._error is not None:
                raise RegiongateError("the shards cannot be followed any more") from self._error
            changed = self._changed
            newest = self.shards
            if newest is told:
                await changed.wait()
            else:
                told = newest
                yield newest

    async def _run(self, started: asyncio.Future[None]) -> None:
        connections = Connections(self._targets, self._routes, self._settings)
        follower = Follower(self._routes, connections)
        try:
            await follower.wait_first(self._settings.connect_timeout.total_seconds())
            async for change in follower.changes():
                self._take(change)
                if not started.done():
                    self._check_regions()
                    started.set_result(None)
        except Exception as error:  # noqa: BLE001 (whoever waits is told)
            if started.done():
                self._error = error
                self._notify()
            else:
                started.set_exception(error)
        finally:
            await follower.close()
            await connections.close()

    def _take(self, change: RouteChange) -> None:
        if self._owned.take(change, self._routes.shard_counts() if change.is_snapshot else None):
            self._notify()

    def _check_regions(self) -> None:
        unknown = sorted(self._regions - self.shards.shard_counts.keys())
        if unknown and self.shards.policy_revision:
            raise UnknownRegion(f"no residency rule covers {', '.join(unknown)}", field_name="regions")

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _close(self) -> None:
        self._is_closed = True
        self._notify()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
