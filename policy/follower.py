"""Keeps one process's routing table equal to what etcd says.

Invariants:
- `table`, `policy_mod_revision` and `store_revision` change together, without an await between: whoever reads them in
  one go has one consistent state.
- The table never goes back: not to an older store revision, not to an older epoch of a shard.
- A law that cannot be read is never guessed at (law L8): `problem` says so, the old table stays for what is local, and
  `policy.presence` withdraws this process's promise to know the law (law L6).
- A watch that has silently stopped is found by asking etcd directly every `probe_every`, and replaced.

What an event carries replaces what is known of its key; a snapshot replaces everything.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

import structlog

from policy.cluster import ClusterState
from policy.compile import compile_policy
from policy.document import PolicyDocument
from policy.errors import PolicyRejected
from policy.feed import run_feed
from policy.metrics import FOLLOWER_RESTARTS, STORE_REVISION, TABLE_POLICY_REVISION
from policy.records import CurrentPolicy, PolicyRevision
from policy.table import RoutingTable
from runtime.etcd import EtcdError, EtcdUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from policy.cluster import Difference
    from policy.compile import Policy
    from policy.feed import FeedBatch
    from policy.records import GatewayRecord, Keys
    from runtime.etcd import EtcdClient

log = structlog.get_logger(__name__)

LAG_ALLOWED = timedelta(seconds=2)
"""How long an event may take longer than a direct read before the watch counts as stuck."""
MAX_BACKOFF = 5.0


class WatchStuck(Exception):
    """Etcd has a newer policy than the watch has brought in reasonable time."""


class StoreWentBack(Exception):
    """Etcd is at an older revision than what has been seen: it was restored from a backup, or it is another one."""


@dataclass(frozen=True, slots=True)
class _Law:
    """What `policy/current` led to; neither policy nor problem: there is no policy."""

    mod_revision: int
    policy: Policy | None = None
    problem: str = ""


def load_stored(record: PolicyRevision) -> Policy:
    """Compiles a stored revision; raises `ValueError` or `PolicyRejected` when this release cannot read it."""
    return compile_policy(PolicyDocument.from_json(json.dumps(record.rules)), record.revision)


class Follower:
    """The routing table and the live gateways of one cluster, as of now."""

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        *,
        probe_every: timedelta = timedelta(seconds=3),
        relist_every: timedelta = timedelta(minutes=5),
    ) -> None:
        self._client = client
        self._keys = keys
        self._probe_every = probe_every.total_seconds()
        self._relist_every = relist_every.total_seconds()
        self._state = ClusterState(keys)
        self._task: asyncio.Task[None] | None = None
        self.table: RoutingTable | None = None
        """None before the first policy: NoPolicy."""
        self.policy_mod_revision = 0
        """Of `policy/current`, as `table` was made from it; 0 while there is none."""
        self.store_revision = 0
        """Everything up to here has been seen."""
        self.gateways: Mapping[str, tuple[GatewayRecord, ...]] = MappingProxyType({})
        """IDC -> its live gateways, ordered by name."""
        self.is_loaded = False
        """Whether one whole snapshot has been seen."""
        self.problem = ""
        """Why the newest law cannot be used; empty when it is in use."""
        self.last_event = 0.0
        """When the store was last heard of (`time.monotonic`)."""
        self._advanced = asyncio.Event()
        self.changed = asyncio.Event()
        """Set at the next change of any of the above, and replaced by a new one: take it, look, then wait for it."""

    @property
    def state(self) -> ClusterState:
        """The records behind the table; read it without an await between, it changes in place."""
        return self._state

    async def start(self) -> None:
        """Starts following; returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="policy-follower")

    async def stop(self) -> None:
        """Stops following; the table stays as it is."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def wait_beyond(self, store_revision: int, deadline: float) -> bool:
        """Waits for a table newer than that (`RoutingTable.store_revision`); False when the loop's clock says so."""
        return await self.wait_until(
            lambda: self.table is not None and self.table.store_revision > store_revision, deadline
        )

    async def wait_loaded(self, deadline: float) -> bool:
        """Waits for the first snapshot, with or without a policy in it."""
        return await self.wait_until(lambda: self.is_loaded, deadline)

    async def wait_seen(self, store_revision: int, deadline: float) -> bool:
        """Waits until everything up to that revision of the store has been seen, whatever it was."""
        try:
            async with asyncio.timeout_at(deadline):
                while self.store_revision < store_revision:
                    await self._advanced.wait()
        except TimeoutError:
            return False
        return True

    async def wait_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Waits for a change that makes the condition true; False when the loop's clock reaches `deadline` first."""
        try:
            async with asyncio.timeout_at(deadline):
                while not condition():
                    await self.changed.wait()
        except TimeoutError:
            return condition()
        return True

    async def subscribe(self) -> AsyncIterator[RoutingTable | None]:
        """The table now, then again after each change of table or gateways; a slow reader gets the newest only."""
        while True:
            changed = self.changed
            yield self.table
            await changed.wait()

    async def _run(self) -> None:
        failures = 0
        while True:
            heard = self.last_event
            try:
                async with asyncio.timeout(self._relist_every):
                    await self._follow()
            except TimeoutError:
                continue  # old servers lose events now and then: list again
            except Exception as error:  # a follower that has died would keep the old law for ever
                failures = 0 if self.last_event != heard else failures + 1
                FOLLOWER_RESTARTS.inc()
                is_expected = isinstance(error, EtcdError | WatchStuck | StoreWentBack)
                log.warning(
                    "following the policy store anew",
                    reason=f"{type(error).__name__}: {error}" if is_expected else type(error).__name__,
                    exc_info=None if is_expected else error,
                )
            await asyncio.sleep(min(MAX_BACKOFF, 0.1 * 2 ** min(failures, 6)) * random.uniform(0.5, 1))  # noqa: S311 - jitter

    async def _follow(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(run_feed(self._client, self._keys.root, self._state.sections, self._take))
                tasks.create_task(self._probe())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _probe(self) -> None:
        """Asks etcd directly whether the watch has kept up, and ends the session when it has not."""
        while True:
            await asyncio.sleep(self._probe_every)
            try:
                item, revision = await self._client.get_at(self._keys.policy_current)
            except EtcdUnavailable:
                continue  # the watch resumes by itself, and freshness rests on the lease
            self.last_event = time.monotonic()
            if revision < self.store_revision:
                raise self._went_back(revision)
            wanted = item.mod_revision if item else 0
            limit = asyncio.get_running_loop().time() + LAG_ALLOWED.total_seconds()
            if not await self.wait_seen(wanted, limit):
                raise WatchStuck(f"the policy changed at revision {wanted}, the watch is at {self.store_revision}")

    async def _take(self, batch: FeedBatch) -> None:
        if batch.is_snapshot and batch.revision < self.store_revision:
            raise self._went_back(batch.revision)
        law = await self._read_law(batch)
        difference = self._state.take(batch)
        self.store_revision = batch.revision
        self.last_event = time.monotonic()
        is_first, self.is_loaded = not self.is_loaded, True
        self._make_table(law, difference, is_snapshot=batch.is_snapshot)
        if difference.gateways:
            self.gateways = MappingProxyType(self._state.gateways_by_idc())
        STORE_REVISION.set(batch.revision)
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()
        if law or difference or is_first:
            self._notify()

    async def _read_law(self, batch: FeedBatch) -> _Law | None:
        """The law that the batch brings; None when it brings none or the one that is in use."""
        change = next((change for change in batch.changes if change.key == self._keys.policy_current), None)
        if change is None:
            return _Law(0) if batch.is_snapshot and self.policy_mod_revision else None
        if change.item is None:
            return _Law(0)
        mod_revision = change.item.mod_revision
        if mod_revision == self.policy_mod_revision:
            return None
        try:
            revision = CurrentPolicy.decode(change.item.value).revision
            key = self._keys.policy_revision(revision)
            written = next((change.item for change in batch.changes if change.key == key), None)
            item = written or await self._client.get(key)
            if item is None:
                return _Law(mod_revision, problem=f"policy revision {revision} is current but is not in the store")
            return _Law(mod_revision, load_stored(PolicyRevision.decode(item.value)))
        except (ValueError, PolicyRejected) as error:
            return _Law(mod_revision, problem=f"the policy is not readable by this release: {type(error).__name__}")

    def _make_table(self, law: _Law | None, difference: Difference, *, is_snapshot: bool) -> None:
        if law is not None and law.problem:
            self._fail(law.problem)
            law = None
        if law is not None:
            self.policy_mod_revision = law.mod_revision
        policy = law.policy if law is not None else None
        if law is not None and policy is None:
            self.table = None
        elif self.table is None or (policy is not None and (is_snapshot or self.problem)):
            self.table = self._rebuilt(policy) if policy is not None else None
        elif policy is not None or difference.shards:
            shards = ((region_code, shard, record) for (region_code, shard), record in difference.shards.items())
            self.table = self.table.patch(store_revision=self.store_revision, policy=policy, shards=shards)
        if law is not None:
            self.problem = ""
            TABLE_POLICY_REVISION.set(policy.revision if policy is not None else 0)
            log.info("deciding by another policy", policy_revision=policy.revision if policy is not None else 0)

    def _rebuilt(self, policy: Policy) -> RoutingTable:
        shards = ((code, shard, known.record) for (code, shard), known in self._state.shards.items())
        return RoutingTable.build(policy, shards, self.store_revision)

    def _went_back(self, revision: int) -> StoreWentBack:
        """After a restore, a revision number may stand for another policy: what is in use must be read again."""
        self.policy_mod_revision = -1
        self._fail(f"the policy store went back from revision {self.store_revision} to {revision}")
        return StoreWentBack(self.problem)

    def _fail(self, problem: str) -> None:
        if problem != self.problem:
            log.error("the newest law cannot be used", problem=problem)
            self.problem = problem
            self._notify()

    def _notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
