"""A lease: the right to work until a time.

The holder judges by its own clock: the lease ends `ttl` after the *sending* of the last keep-alive that was answered,
which is never later than etcd's own end of it. So a process that was cut off, or paused and woken up, knows that it
has lost its lease without asking anybody. A lease that is lost stays lost. A lease is about liveness only: it fences
nothing, so what a holder writes must be compared where it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from runtime.etcd import methods
from runtime.etcd.errors import EtcdError, EtcdRejected
from runtime.etcd.pb import rpc_pb2 as pb
from runtime.etcd.transport import back_off

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from runtime.etcd.client import EtcdClient

log = structlog.get_logger(__name__)

_REVOKE_SECONDS = 2.0
# CLOCK_MONOTONIC stands still while the machine is suspended, and etcd's does not.
_SUSPEND_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Lease:
    """A lease that is kept alive in the background; made by `Lease.grant`."""

    def __init__(self, client: EtcdClient, lease_id: int) -> None:
        self.id = lease_id
        self.ttl = timedelta()
        self.deadline = float("-inf")
        """When the lease ends unless it is renewed, in `time.monotonic()` seconds."""
        self.done = asyncio.Event()
        """Set when the lease is lost, or given back."""
        self._client = client
        self._suspend_deadline = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    @staticmethod
    @asynccontextmanager
    async def grant(client: EtcdClient, ttl: timedelta) -> AsyncGenerator[Lease]:
        """Takes a lease for a block of code and gives it back at its end; etcd may grant more time than asked for."""
        # An id of our own choice makes the request repeatable: a lost answer leaves no second lease behind.
        lease = Lease(client, secrets.randbits(62) + 1)
        await lease._obtain(ttl)
        keeper = asyncio.create_task(lease._keep_alive(), name="etcd-lease")
        try:
            yield lease
        finally:
            keeper.cancel()
            lease._end()
            await asyncio.gather(keeper, return_exceptions=True)
            await lease._revoke()

    @property
    def is_alive(self) -> bool:
        """Whether the lease is certainly still held: judged now, by the clock."""
        return (
            not self.done.is_set()
            and time.monotonic() < self.deadline
            and time.clock_gettime(_SUSPEND_CLOCK) < self._suspend_deadline
        )

    async def _obtain(self, ttl: timedelta) -> None:
        sent, sent_suspend = time.monotonic(), time.clock_gettime(_SUSPEND_CLOCK)
        request = pb.LeaseGrantRequest(ID=self.id, TTL=max(1, round(ttl.total_seconds())))
        try:
            granted = (await self._client.transport.call(methods.LEASE_GRANT, request)).response.TTL
        except EtcdRejected as error:
            if "already exists" not in str(error):
                raise
            # An earlier attempt was applied after all.
            sent, sent_suspend = time.monotonic(), time.clock_gettime(_SUSPEND_CLOCK)
            alive = pb.LeaseKeepAliveRequest(ID=self.id)
            granted = (await self._client.transport.call(methods.LEASE_KEEP_ALIVE, alive)).response.TTL
        self._extend(sent, sent_suspend, granted)

    def _extend(self, sent: float, sent_suspend: float, ttl_seconds: int) -> None:
        self.ttl = timedelta(seconds=ttl_seconds)
        self.deadline = sent + ttl_seconds
        self._suspend_deadline = sent_suspend + ttl_seconds
        if self._timer is not None:
            self._timer.cancel()
        left = max(0.0, self.deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(left, self._lose, "not renewed in time")

    def _lose(self, reason: str) -> None:
        log.warning("lease lost", reason=reason)
        self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.done.set()

    async def _keep_alive(self) -> None:
        failures = 0
        while not self.done.is_set():
            interval = self.ttl.total_seconds() / 3
            pause = interval if failures == 0 else min(back_off(failures), interval)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.done.wait(), pause)
            if self.done.is_set():
                return
            try:
                await self._renew(interval)
            except EtcdError as error:
                if failures == 0:
                    left = round(self.deadline - time.monotonic(), 1)
                    log.warning("lease not renewed, trying on", seconds_left=left, error=str(error))
                failures += 1
            else:
                failures = 0

    async def _renew(self, timeout: float) -> None:
        sent, sent_suspend = time.monotonic(), time.clock_gettime(_SUSPEND_CLOCK)
        request = pb.LeaseKeepAliveRequest(ID=self.id)
        timeout = min(timeout, self._client.transport.settings.attempt_timeout.total_seconds())
        response = await self._client.transport.attempt(methods.LEASE_KEEP_ALIVE, request, timeout)
        if response.TTL > 0 and self.is_alive:
            self._extend(sent, sent_suspend, response.TTL)
            return
        self._lose("ended by etcd" if response.TTL <= 0 else "renewed too late")

    async def _revoke(self) -> None:
        with contextlib.suppress(EtcdError, TimeoutError):
            async with asyncio.timeout(_REVOKE_SECONDS):
                await self._client.transport.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=self.id))
