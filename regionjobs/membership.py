"""Who runs jobs in an IDC: one record of each runner in etcd, under a lease.

Invariants:
- A session is one lease and one record under a key of its own. No two sessions share an id, whatever the runners are
  called, and a session that is over never comes back: its runner registers anew, under another id.
- `is_alive` is judged when it is asked, by this process's own clock and a margin before etcd could end the lease. So a
  runner that was paused or cut off knows that its session is over before it runs its first instruction.
- Whoever is alive is among its own `members`: all shares are worked out from what etcd says, one's own, too.
- It is about liveness only, and fences nothing: of two runners that hold one shard for a moment, the token of the
  shard's offset lets one commit (law L5).
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from policy.errors import InvalidInput
from policy.presence import MARGIN
from policy.records import RunnerRecord
from runtime.etcd import EtcdError, Lease, compare_create_revision, put_op
from runtime.tasks import first_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from policy.records import Keys
    from runtime.etcd import EtcdClient, FollowBatch

log = structlog.get_logger(__name__)

_RELIST_EVERY = timedelta(minutes=1)
_MAX_BACKOFF = 1.0


class Membership:
    """One runner's session, and the live runners of its IDC."""

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        *,
        idc: str,
        name: str,
        jobs: Sequence[str],
        metrics: str = "",
        session: str = "",
        ttl: timedelta = timedelta(seconds=3),
    ) -> None:
        """Starts nothing.

        Args:
            client: etcd's.
            keys: Of the cluster.
            idc: Where the runner stands.
            name: For people; it need not be unique.
            jobs: Names of the jobs that it runs.
            metrics: Base URL of its metrics.
            session: `application_name` of its batches' connections.
            ttl: Of its lease.

        Raises:
            InvalidInput: The name cannot be part of a key.
        """
        if not name or "/" in name:
            raise InvalidInput("name: of a runner: not empty, and no /", field_name="name")
        self._client = client
        self._keys = keys
        self._idc = idc
        self._name = name
        self._jobs = tuple(sorted(jobs))
        self._metrics = metrics
        self._session = session
        self._ttl = ttl
        self._margin = ttl.total_seconds() * MARGIN
        self._lease: Lease | None = None
        self._id = ""
        self._seen_revision = 0
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self.members: Mapping[str, RunnerRecord] = MappingProxyType({})
        """The live runners of the IDC by id, as far as etcd has told."""
        self.changed = asyncio.Event()
        """Set at the next change of anything here, and replaced by a new one: take it, look, then wait for it."""

    @property
    def runner(self) -> str:
        """Id of the live session; empty while there is none. Another one after each loss."""
        return self._id if self.is_alive else ""

    @property
    def is_alive(self) -> bool:
        """Whether the session certainly lasts: ask before each thing that only a live runner may begin."""
        return self._lease is not None and self._lasts(self._lease, self._id)

    async def start(self) -> None:
        """Starts following and registering; returns at once."""
        if not self._tasks:
            self._tasks = (
                asyncio.create_task(_for_ever(self._follow, "following the runners anew"), name="jobs-members"),
                asyncio.create_task(_for_ever(self._register, "this runner is not registered"), name="jobs-session"),
            )

    async def stop(self) -> None:
        """Ends the session, and takes its record away, so that others take over at once."""
        self._lease = None
        tasks, self._tasks = self._tasks, ()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def wait_alive(self, deadline: float) -> bool:
        """Waits for a live session; False when the loop's clock reaches `deadline` first."""
        try:
            async with asyncio.timeout_at(deadline):
                while not self.is_alive:
                    await self.changed.wait()
        except TimeoutError:
            return self.is_alive
        return True

    async def _register(self) -> None:
        """One session, from its lease to its end."""
        async with Lease.grant(self._client, self._ttl) as lease:
            runner = f"{self._name}.{lease.id:016x}"
            record = RunnerRecord(runner, self._idc, self._jobs, self._metrics, self._session)
            key = self._keys.runner(self._idc, runner)
            put = await self._client.transact(
                [compare_create_revision(key, 0)], [put_op(key, record.encode(), lease=lease.id)]
            )
            if not put.succeeded:
                return  # somebody else has an eye on our key: another lease, another key
            await self._wait_seen(put.revision, lease)
            try:
                self._lease, self._id = lease, runner
                log.info("registered", runner=runner)
                self._notify()
                await self._last(lease, runner)
                log.warning("this runner's session is over", runner=runner, is_deleted=runner not in self.members)
            finally:
                # Before the lease is given back: the record must never go while we still count as alive.
                self._lease, self._id = None, ""
                self._notify()

    async def _wait_seen(self, revision: int, lease: Lease) -> None:
        while lease.is_alive and self._seen_revision < revision:
            changed = self.changed
            await first_of(changed, lease.done)

    async def _last(self, lease: Lease, runner: str) -> None:
        """Returns when the session is over: the lease has (nearly) ended, or somebody has deleted the record."""
        while self._lasts(lease, runner):
            changed = self.changed
            left = lease.deadline - self._margin - time.monotonic()
            await first_of(changed, lease.done, timeout=max(0.0, left))

    def _lasts(self, lease: Lease, runner: str) -> bool:
        return lease.is_alive and time.monotonic() < lease.deadline - self._margin and runner in self.members

    async def _follow(self) -> None:
        prefix = self._keys.runners_of(self._idc)
        async with aclosing(self._client.follow(prefix, relist_every=_RELIST_EVERY)) as batches:
            async for batch in batches:
                self._take(batch)

    def _take(self, batch: FollowBatch) -> None:
        members = {} if batch.is_snapshot else dict(self.members)
        puts = batch.items if batch.is_snapshot else [event.item for event in batch.events if event.kind == "put"]
        gone = [event.item.key for event in batch.events if event.kind != "put"]
        # Keys are never used twice, so the order of puts and deletes does not matter: what is deleted stays so.
        for item in puts:
            try:
                members[self._id_of(item.key)] = RunnerRecord.decode(item.value)
            except ValueError as error:
                log.warning("a runner's record cannot be read", reason=str(error))
        for key in gone:
            members.pop(self._id_of(key), None)
        self._seen_revision = batch.revision
        self.members = MappingProxyType(members)
        self._notify()

    def _id_of(self, key: str) -> str:
        return key.removeprefix(self._keys.runners_of(self._idc))

    def _notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


async def _for_ever(work: Callable[[], Awaitable[None]], trouble: str) -> None:
    """Does it again and again: a runner that gave up for good would hold no shard, and say so to nobody."""
    failures = 0
    while True:
        try:
            await work()
            failures = 0
        except Exception as error:
            failures += 1
            is_expected = isinstance(error, EtcdError)
            log.warning(
                trouble,
                reason=f"{type(error).__name__}: {error}" if is_expected else type(error).__name__,
                exc_info=None if is_expected else error,
            )
        await asyncio.sleep(min(_MAX_BACKOFF, 0.1 * 2 ** min(failures, 6)) * random.uniform(0.5, 1))  # noqa: S311 - jitter
