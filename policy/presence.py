"""A gateway's promise to know the law, kept in etcd under a lease (law L6).

The protocol, and why no gateway decides a border crossing by an older policy than the one `apply` calls effective:
- A gateway is registered by a transaction that holds only while `policy/current` is still the one that it has loaded.
  So whoever registers after revision R was stored decides by R; `apply` need only wait for those who were there before.
- Its record names the revision that it decides by. The table changes first, the record after.
- `apply` waits until each record says R or is gone. A record goes when its lease ends, and etcd ends a lease no earlier
  than its TTL after the last keep-alive was sent. `is_fresh` ends a margin before that, by this process's own monotonic
  clock, looked at each time: no event, callback or network is needed to lose freshness, and a paused process that wakes
  up has lost it before it runs its first instruction.
- Freshness goes before the record does, on every way out: stop, unreadable law, a record that is not ours any more.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from policy.metrics import ACKNOWLEDGED_REVISION, IS_FRESH, REGISTRATIONS
from policy.records import GatewayRecord
from runtime.etcd import (
    EtcdError,
    EtcdUnavailable,
    Lease,
    compare_create_revision,
    compare_mod_revision,
    put_op,
)
from runtime.tasks import first_of

if TYPE_CHECKING:
    from policy.follower import Follower
    from policy.records import Keys
    from runtime.etcd import EtcdClient

log = structlog.get_logger(__name__)

MARGIN = 0.1
"""Share of the lease's time given up against clocks that run at different speeds."""
RETRY = 1.0
"""Seconds until a put that etcd has not confirmed, or a registration under a changed law, is tried again."""
MAX_BACKOFF = 5.0


class RecordLost(Exception):
    """The record in etcd is not ours any more."""


class Presence:
    """One gateway's lease, its record and its freshness."""

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        follower: Follower,
        *,
        gateway: str,
        idc: str,
        address: str,
        peer_address: str,
        ttl: timedelta = timedelta(seconds=10),
    ) -> None:
        """`gateway` is a name for people; the key in etcd is made from it and the lease."""
        self._client = client
        self._keys = keys
        self._follower = follower
        self._identity = {"gateway": gateway, "idc": idc, "address": address, "peer_address": peer_address}
        self._ttl = ttl
        self._margin = ttl.total_seconds() * MARGIN
        self._lease: Lease | None = None
        self._schema_revision = 0
        self._wake = asyncio.Event()
        self._registered = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        IS_FRESH.set_function(lambda: float(self.is_fresh))

    @property
    def is_fresh(self) -> bool:
        """Whether border crossings may be judged right now; ask again before the answer leaves."""
        lease = self._lease
        return (
            lease is not None
            and not self._follower.problem
            and lease.is_alive
            and time.monotonic() < lease.deadline - self._margin
        )

    @property
    def is_registered(self) -> bool:
        """Whether a record of this gateway stands in etcd, as far as is known here."""
        return self._lease is not None

    def report_schema(self, revision: int) -> None:
        """Says that the IDC's database has the datasets of that policy revision; told to etcd soon."""
        self._schema_revision = revision
        self._wake.set()

    async def start(self) -> None:
        """Starts registering; returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="policy-presence")

    async def stop(self) -> None:
        """Gives freshness up, then takes the record away."""
        self._lease = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def wait_registered(self, deadline: float) -> bool:
        """Waits until the gateway is registered; False when the loop's clock reaches `deadline` first."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._registered.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._usable_law()
                async with Lease.grant(self._client, self._ttl) as lease:
                    await self._live(lease)
                failures = 0
            except (EtcdError, RecordLost) as error:
                failures = 0 if isinstance(error, RecordLost) else failures + 1
                log.warning("this gateway is not registered", reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(min(MAX_BACKOFF, 0.1 * 2 ** min(failures, 6)) * random.uniform(0.5, 1))  # noqa: S311 - jitter

    async def _usable_law(self) -> None:
        while not self._follower.is_loaded or self._follower.problem:
            await self._follower.changed.wait()

    async def _live(self, lease: Lease) -> None:
        """One lease's life: from the registration to whatever ends it."""
        # A key for each lease: what is left from an earlier one, of this process or of another with the same name, is
        # neither overwritten nor taken away, for `apply` may have to wait for it still.
        key = self._keys.gateway(self._identity["idc"], f"{self._identity['gateway']}.{lease.id:016x}")
        try:
            created, written = await self._register(lease, key)
            self._lease = lease
            self._registered.set()
            REGISTRATIONS.inc()
            log.info("registered", policy_revision=written.policy_revision)
            while lease.is_alive and not self._follower.problem:
                changed = self._follower.changed
                self._wake.clear()
                self._check_record(key, created)
                written = await self._acknowledge(lease, key, created, written)
                await first_of(changed, self._wake, lease.done, timeout=RETRY if written != self._record() else None)
            log.warning("withdrawing", problem=self._follower.problem or "the lease has ended")
        finally:
            # Before the lease is revoked: the record must never go while we still count as fresh.
            self._lease = None
            self._registered.clear()

    async def _register(self, lease: Lease, key: str) -> tuple[int, GatewayRecord]:
        """Returns the revision at which our record was created, and the record."""
        while lease.is_alive and not self._follower.problem:
            changed = self._follower.changed
            record, seen = self._record(), self._follower.policy_mod_revision
            result = await self._client.transact(
                [compare_create_revision(key, 0), compare_mod_revision(self._keys.policy_current, seen)],
                [put_op(key, record.encode(), lease=lease.id)],
            )
            if result.succeeded:
                return result.revision, record
            # Another policy became current meanwhile; what we have loaded is no ground to serve on.
            await first_of(changed, lease.done, timeout=RETRY)
        raise RecordLost("there was no registering within one lease")

    def _check_record(self, key: str, created: int) -> None:
        """A record that somebody deleted is not waited for by `apply`: without it we may not count as fresh."""
        if self._follower.store_revision >= created and key not in self._follower.state.gateways:
            raise RecordLost("the record was deleted")

    async def _acknowledge(self, lease: Lease, key: str, created: int, written: GatewayRecord) -> GatewayRecord:
        """Tells etcd what we decide by, if that has changed; returns what etcd has been told."""
        record = self._record()
        if record == written:
            return written
        try:
            result = await self._client.transact(
                [compare_create_revision(key, created)], [put_op(key, record.encode(), lease=lease.id)]
            )
        except EtcdUnavailable as error:
            # Told again as long as the lease holds; an acknowledgement that comes late only makes `apply` wait.
            log.warning("not acknowledged yet", policy_revision=record.policy_revision, reason=str(error))
            return written
        if not result.succeeded:
            raise RecordLost("the record is not ours any more")
        ACKNOWLEDGED_REVISION.set(record.policy_revision)
        return record

    def _record(self) -> GatewayRecord:
        table = self._follower.table
        revision = table.policy.revision if table is not None else 0
        return GatewayRecord(**self._identity, policy_revision=revision, schema_revision=self._schema_revision)
