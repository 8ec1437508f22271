"""Election of one process among many, as etcd's own concurrency package does it.

Each candidate writes a key under its lease; the one with the lowest create revision leads, each other waits for the
candidate just before it. The create revision is the fencing token: a leader that was paused may still believe that it
leads, so everything that it writes is a transaction that compares its key's create revision (`Leadership.compare`).
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.etcd.errors import EtcdCompacted, EtcdError, EtcdLeaseLost
from runtime.etcd.types import Compare, KeyValue, compare_create_revision, delete_op, get_op, put_op

if TYPE_CHECKING:
    from runtime.etcd.client import EtcdClient
    from runtime.etcd.lease import Lease

_WITHDRAW_SECONDS = 2.0


@dataclass(slots=True)
class Leadership:
    """What a leader holds."""

    client: EtcdClient
    lease: Lease
    key: str
    token: int
    """Create revision of the key; goes up with each leader."""

    has_resigned: bool = False

    @property
    def is_leader(self) -> bool:
        """Whether the lease still holds; no substitute for `compare` in what is written."""
        return not self.has_resigned and self.lease.is_alive

    @property
    def compare(self) -> Compare:
        """Fails in any transaction once the leadership has passed on."""
        return compare_create_revision(self.key, self.token)

    async def resign(self) -> None:
        """Lets the next candidate lead at once."""
        self.has_resigned = True
        await self.client.transact([self.compare], [delete_op(self.key)])


class Election:
    """One office under a prefix."""

    def __init__(self, client: EtcdClient, prefix: str, value: bytes) -> None:
        self._client = client
        self._prefix = prefix.rstrip("/") + "/"
        self._value = value

    async def campaign(self, lease: Lease) -> Leadership:
        """Waits until this candidate leads; cancelling it withdraws the candidacy.

        Raises EtcdLeaseLost when the lease ends first.
        """
        key = f"{self._prefix}{lease.id:016x}"
        turn = asyncio.create_task(self._wait_for_turn(lease, key))
        end = asyncio.create_task(lease.done.wait())
        try:
            await asyncio.wait({turn, end}, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                raise EtcdLeaseLost(f"the lease of candidate {key} has ended")
            return Leadership(self._client, lease, key, turn.result())
        except BaseException:
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            await self._withdraw(key)
            raise
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)

    async def leader(self) -> KeyValue | None:
        """The leader's key, or None when there is no candidate."""
        listing = await self._client.list(self._prefix)
        return min(listing.items, key=lambda item: item.create_revision, default=None)

    async def _wait_for_turn(self, lease: Lease, key: str) -> int:
        """Enters the candidate, waits until it is the oldest one, and returns its token."""
        entry = await self._client.transact(
            [compare_create_revision(key, 0)], [put_op(key, self._value, lease=lease.id)], [get_op(key)]
        )
        held = None if entry.succeeded else entry.results[0]
        token = held.create_revision if held else entry.revision
        while True:
            listing = await self._client.list(self._prefix)
            if all((item.key, item.create_revision) != (key, token) for item in listing.items):
                raise EtcdLeaseLost(f"the key of candidate {key} is gone")
            before = [item for item in listing.items if item.create_revision < token]
            if not before:
                return token
            await self._wait_for_end(max(before, key=lambda item: item.create_revision), listing.revision)

    async def _wait_for_end(self, candidate: KeyValue, revision: int) -> None:
        try:
            async with aclosing(self._client.watch(candidate.key, start_revision=revision + 1)) as batches:
                async for batch in batches:
                    if any(event.kind == "delete" for event in batch.events):
                        return
        except EtcdCompacted:
            return  # the caller lists again

    async def _withdraw(self, key: str) -> None:
        """Takes the candidate's key away, if etcd can be reached; if not, its lease will end."""
        with contextlib.suppress(EtcdError, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_SECONDS):
                await self._client.delete(key)
