"""State and changes of a prefix: list, watch from there, list again when history is gone.

The watch is checked by listing now and then. A listing that differs from what the watch has told names suspects: keys
and the revision that the watch still owes for them. Those that it does not deliver within a grace time were lost, and
the follower gets a new snapshot. So a server that loses events delays a change, and cannot hide one.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from runtime.etcd.errors import EtcdCompacted, EtcdUnavailable
from runtime.etcd.transport import back_off
from runtime.etcd.types import FollowBatch, Listing, WatchBatch
from runtime.etcd.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

    from runtime.etcd.client import EtcdClient

log = structlog.get_logger(__name__)

GRACE_SECONDS = 5.0
"""How long the watch may take to deliver what a listing has shown."""

_LAST_LOOK_SECONDS = 0.1
"""How long the watch is read at least before changes count as lost."""


class Audit:
    """What the watch has told so far, and what it still owes after a listing."""

    def __init__(self, listing: Listing, sections: tuple[str, ...]) -> None:
        self._sections = sections
        self._known = {item.key: item.mod_revision for item in listing.items}
        self._latest: dict[str, int] = {}
        self._listed_at = listing.revision
        self._behind: dict[str, int] = {}
        self._gone: set[str] = set()

    @property
    def owed(self) -> int:
        """Number of keys whose last change a listing has shown and the watch has not."""
        behind = sum(self._latest.get(key, 0) < revision for key, revision in self._behind.items())
        return behind + sum(self._known.get(key, self._listed_at + 1) <= self._listed_at for key in self._gone)

    def note(self, batch: WatchBatch) -> None:
        """Takes note of what the watch has delivered."""
        for event in batch.events:
            key, revision = event.item.key, event.item.mod_revision
            if not key.startswith(self._sections):
                continue
            if event.kind == "put":
                self._known[key] = revision
            else:
                self._known.pop(key, None)
            if key in self._behind:
                self._latest[key] = revision

    def compare(self, listing: Listing) -> None:
        """Compares with a listing that was made after the last noted batch, so it is never behind what is known."""
        listed = {item.key: item.mod_revision for item in listing.items}
        self._listed_at = listing.revision
        self._latest.clear()
        self._behind = {key: revision for key, revision in listed.items() if self._known.get(key, 0) < revision}
        self._gone = self._known.keys() - listed.keys()


@dataclass(frozen=True, slots=True)
class Scope:
    """What is followed."""

    client: EtcdClient
    prefix: str
    sections: tuple[str, ...]

    async def list(self) -> Listing:
        """Lists all sections at one revision."""
        listing = await self.client.list(self.sections[0])
        items = list(listing.items)
        for section in self.sections[1:]:
            items += (await self.client.list(section, revision=listing.revision)).items
        return Listing(tuple(items), listing.revision)

    async def list_patiently(self) -> Listing:
        """Lists as soon as etcd answers."""
        failures = 0
        while True:
            try:
                return await self.list()
            except (EtcdUnavailable, EtcdCompacted):
                await asyncio.sleep(back_off(failures))
                failures += 1


async def follow(
    client: EtcdClient, prefix: str, sections: tuple[str, ...], relist_every: timedelta
) -> AsyncGenerator[FollowBatch]:
    """Yields a snapshot, then changes; a snapshot again whenever changes have been lost. See `EtcdClient.follow`."""
    scope = Scope(client, prefix, sections)
    while True:
        listing = await scope.list_patiently()
        yield FollowBatch(listing.revision, is_snapshot=True, items=listing.items)
        watcher = Watcher(client.transport, prefix, listing.revision + 1)
        try:
            async with aclosing(_changes(scope, watcher, listing, relist_every.total_seconds())) as changes:
                async for batch in changes:
                    yield FollowBatch(batch.revision, is_snapshot=False, events=batch.events)
        except EtcdCompacted as error:
            log.info("history compacted, listing again", prefix=prefix, compact_revision=error.compact_revision)
        finally:
            await watcher.close()


async def _changes(scope: Scope, watcher: Watcher, listing: Listing, relist_every: float) -> AsyncGenerator[WatchBatch]:
    """Yields what the watch delivers, until a listing proves that it has lost something."""
    audit, revision = Audit(listing, scope.sections), listing.revision
    relist_at = time.monotonic() + relist_every
    while True:
        batch = await watcher.next(max(_LAST_LOOK_SECONDS, relist_at - time.monotonic()))
        if batch is not None:
            revision = batch.revision
            audit.note(batch)
            yield batch
        if time.monotonic() < relist_at or (batch is not None and audit.owed):
            continue  # a follower that is slow itself has lost nothing as long as there is more to read
        if audit.owed:
            log.warning("the watch has lost changes, listing again", prefix=scope.prefix, lost=audit.owed)
            return
        try:
            listing = await scope.list()
        except (EtcdUnavailable, EtcdCompacted):
            relist_at = time.monotonic() + min(relist_every, GRACE_SECONDS)
            continue
        if listing.revision < revision:
            log.error("etcd's history has gone back", prefix=scope.prefix, known=revision, found=listing.revision)
            return
        audit.compare(listing)
        relist_at = time.monotonic() + (min(relist_every, GRACE_SECONDS) if audit.owed else relist_every)
