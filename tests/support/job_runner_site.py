"""Job runners in the test's own event loop, on a real etcd and real PostgreSQL: a test can stop them between two steps.

Policy and assignments are put into etcd by hand, and shards are moved by the real movers, so a test is the controller.
"""

from __future__ import annotations

import json
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import asyncpg

from policy import move
from policy.compile import compile_policy
from policy.loading import load_policy
from policy.records import CurrentPolicy, Keys, PolicyRevision, ShardRecord
from policy.sharding import shard_of
from rowstore.database import Database
from rowstore.jobs import firings, registry, runs
from rowstore.jobs.model import JobRecord
from rowstore.model import RowWrite, ShardEpoch
from rowstore.moving import Mover, MoveStep
from rowstore.moving.model import ShardDigest
from rowstore.schema import ensure_datasets, migrate
from runtime.etcd import EtcdClient, put_op
from tests.support.cluster import settings
from tests.support.job_runner_parts import SiteRunner, WholeRunner, running_runner, serving_runner
from tests.support.postgres import create_database
from tests.support.row_databases import MovePair, RowDatabase, row_database, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from policy.compile import Policy
    from regionjobs.definition import Job
    from rowstore.jobs.model import RunRecord
    from runtime.embedded.postgres import EmbeddedPostgres

LAW: Final = """\
version: 1
idcs:
  sha: {jurisdiction: CN}
  sin: {jurisdiction: SG}
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
groups:
  EU: [DE, FR]
residency:
  - {name: asia, regions: [SG], jurisdictions: [CN, SG], idcs: {sha: 50, sin: 50}, shards: 3}
  - {name: europe, regions: [EU], jurisdictions: [EU], idcs: {fra: 50, ams: 50}, shards: 2}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
  orders:
    key: int64
    columns:
      total: {type: int64}
"""
OWNERS: Final[dict[str, tuple[str, ...]]] = {"SG": ("sin", "sha", "sha"), "DE": ("fra", "fra"), "FR": ("fra", "ams")}
"""Who owns each shard at the beginning."""

TABLES: Final = """
CREATE TABLE effects_ledger (
    region_code text COLLATE "C" NOT NULL, shard integer NOT NULL, entry uuid NOT NULL DEFAULT gen_random_uuid(),
    job text NOT NULL, seq bigint NOT NULL, idc text NOT NULL, PRIMARY KEY (region_code, shard, entry)
);
CREATE TABLE adopted (id bigint PRIMARY KEY, region text NOT NULL, name text NOT NULL, size int NOT NULL DEFAULT 1)
"""
"""An entry for each change that a batch was given (nothing forbids one twice), and a table that was there before."""


def law(text: str = LAW, revision: int = 1) -> Policy:
    """The policy, compiled."""
    return compile_policy(load_policy(text).document, revision)


class RunnerDatabases:
    """Databases with all tables, no rows and no fences, one for each IDC of a test; used again after a good end."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._template = ""
        self._free: list[str] = []

    async def take(self) -> str:
        """URL of one."""
        if self._free:
            return self._free.pop()
        if not self._template:
            url = await create_database(self._server)
            await prepare(url)
            self._template = urlsplit(url).path.removeprefix("/")
        return await create_database(self._server, self._template)

    async def give_back(self, url: str) -> None:
        """Empties one, whoever is still at it."""
        hand = await asyncpg.connect(url)
        try:
            await hand.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            records = await hand.fetch(
                "SELECT quote_ident(tablename) FROM pg_tables"
                " WHERE schemaname = current_schema() AND tablename <> 'alembic_version'"
            )
            await hand.execute(f"TRUNCATE {', '.join(record[0] for record in records)}")
        finally:
            await hand.close()
        self._free.append(url)


async def prepare(url: str) -> None:
    """Makes all tables."""
    await migrate(url)
    async with Database.open(url) as database:
        await ensure_datasets(database, list(law().datasets.values()))
        for statement in TABLES.split(";"):
            await database.fetch(statement)


@dataclass
class RunnerSite:
    """Databases of IDCs, and a cluster in etcd."""

    client: EtcdClient
    endpoint: str
    keys: Keys
    idcs: dict[str, RowDatabase]
    policy: Policy = field(default_factory=law)
    records: dict[tuple[str, int], ShardRecord] = field(default_factory=dict)
    revision: int = 0
    """Of etcd, after the newest change made here."""

    # ---- the law and who owns what ----------------------------------------------------------------------------------

    async def apply(self, text: str = LAW) -> None:
        """Makes a policy the current one."""
        number = self.policy.revision + (1 if self.revision else 0)
        document = load_policy(text).document
        self.policy = compile_policy(document, number)
        record = PolicyRevision(
            number, number - 1, text, "test", "", "2026-01-01T00:00:00+00:00", rules=json.loads(document.to_json())
        )
        result = await self.client.transact(
            [],
            [
                put_op(self.keys.policy_revision(number), record.encode()),
                put_op(self.keys.policy_current, CurrentPolicy(number).encode()),
            ],
        )
        self.revision = result.revision

    async def assign(self, code: str, shard: int, **changes: Any) -> None:
        """Changes the record of a shard: only in etcd, fences stay as they are."""
        known = self.records.get((code, shard)) or ShardRecord("", 1, "serving", self.policy.revision)
        record = replace(known, **changes)
        self.records[code, shard] = record
        self.revision = (
            await self.client.transact([], [put_op(self.keys.shard(code, shard), record.encode())])
        ).revision

    async def open(self, code: str, owners: Sequence[str]) -> None:
        """Gives the shards of a RegionCode their first owners."""
        for shard, owner in enumerate(owners):
            if owner in self.idcs:
                await self.idcs[owner].store.fences.open([ShardEpoch(code, shard, 1)])
            await self.assign(code, shard, owner=owner)

    async def move(self, code: str, shard: int, target: str, *, traceparent: str = "") -> None:
        """Moves a shard with all that belongs to it, as a rollout would."""
        before = self.records[code, shard]
        source = before.owner
        started = move.start(before, target, "by-hand", traceparent)
        step = MoveStep(code, shard, started.epoch, started.attempt)
        async with Mover(self.idcs[source].database) as sender, Mover(self.idcs[target].database) as receiver:
            pair = MovePair(self.idcs[source], self.idcs[target], sender, receiver)
            await self._put(code, shard, started)
            await sender.begin_export(step)
            await pair.copy(step)
            await self._put(code, shard, move.advance(self.records[code, shard], move.MoveEvent.COPIED))
            last = await pair.close_and_copy(step)
            await self._put(code, shard, move.advance(self.records[code, shard], move.MoveEvent.DRAINED))
            digest = last.digest or ShardDigest(0, "")
            await self._put(code, shard, move.switch(self.records[code, shard], digest.rows, digest.digest))
            await receiver.open(step)
            await self._put(code, shard, move.advance(self.records[code, shard], move.MoveEvent.OPENED))
            await sender.purge(step, digest)
            await self._put(code, shard, move.purge(self.records[code, shard], source))
        await self.ring(target)

    async def _put(self, code: str, shard: int, record: ShardRecord) -> None:
        self.records[code, shard] = record
        await self.assign(code, shard)

    def owned(self, idc: str, *codes: str) -> list[tuple[str, int]]:
        """Shards that an IDC owns."""
        return sorted(key for key, it in self.records.items() if it.owner == idc and (not codes or key[0] in codes))

    # ---- rows -------------------------------------------------------------------------------------------------------

    def keys_in(self, code: str, shard: int, number: int, prefix: str = "k") -> list[str]:
        """Keys that are in a shard."""
        shards = self.policy.regions[code].shards
        found = (key for n in count() if shard_of(key := f"{prefix}{n}", shards) == shard)
        return [next(found) for _ in range(number)]

    async def put(self, code: str, *keys: str, delete: bool = False, ring: bool = True) -> list[int]:
        """Writes rows where they belong; returns their sequences."""
        writes: dict[str, list[RowWrite]] = {}
        shards = self.policy.regions[code].shards
        for key in keys:
            record = self.records[code, shard_of(key, shards)]
            values = None if delete else {"name": key, "spend": 1}
            writes.setdefault(record.owner, []).append(RowWrite(code, shard_of(key, shards), record.epoch, key, values))
        written: dict[str | int, int] = {}
        for owner, mine in writes.items():
            outcomes = await self.idcs[owner].store.write(self.policy.datasets["customers"], mine)
            written |= {write.key: outcome.version for write, outcome in zip(mine, outcomes, strict=True)}
            if ring:
                await self.idcs[owner].database.fetch("SELECT pg_notify($1, '')", registry.DOORBELL)
        return [written[key] for key in keys]

    async def fill(self, code: str, each: int, prefix: str = "k") -> None:
        """So many rows in each shard of a RegionCode."""
        for shard in range(self.policy.regions[code].shards):
            await self.put(code, *self.keys_in(code, shard, each, prefix), ring=False)
        for idc in self.idcs:
            await self.ring(idc)

    async def ledger(self, job: str, *idcs: str) -> list[str]:
        """All entries, of all IDCs where none is named, each as often as it was made: region/shard/seq."""
        found: list[str] = []
        for idc in idcs or self.idcs:
            records = await self.idcs[idc].hand.fetch(
                "SELECT region_code, shard, seq FROM effects_ledger WHERE job = $1", job
            )
            found += [f"{code}/{shard}/{seq}" for code, shard, seq in records]
        return sorted(found)

    async def entered(self, job: str, number: int) -> list[str]:
        """Waits for so many entries, and returns them."""

        async def has() -> bool:
            return len(await self.ledger(job)) >= number

        await until(has, f"{number} entries of {job}, only {await self.ledger(job)}")
        return await self.ledger(job)

    # ---- jobs -------------------------------------------------------------------------------------------------------

    async def ring(self, idc: str) -> None:
        """Wakes the runners of an IDC."""
        await registry.ring(self.idcs[idc].database.fetch)

    async def register(self, idc: str, job: Job) -> None:
        """Makes a job known before any runner does."""
        record = JobRecord(job.name, job.dataset, job.scan, job.kind.value, job.describe())
        await registry.register(self.idcs[idc].database.fetch, record)

    async def fire(self, idc: str, job: str) -> datetime:
        """Orders a pass, as `jobs trigger` does."""
        fired: list[datetime] = []

        async def is_known() -> bool:
            time = await firings.trigger(self.idcs[idc].database.fetch, job, "manual")
            fired.extend([time] if time else [])
            return time is not None

        await until(is_known, f"{job} known in {idc}")
        await self.ring(idc)
        return fired[0]

    async def finished(self, idc: str, job: str, number: int = 1) -> list[datetime]:
        """Waits until so many firings have been made and ended, and no other is open; returns their times."""
        query = "SELECT scheduled_time, end_time FROM job_firings WHERE job = $1 ORDER BY scheduled_time"

        async def is_so() -> bool:
            records = await self.idcs[idc].hand.fetch(query, job)
            return len(records) >= number and all(record["end_time"] for record in records)

        await until(is_so, f"{number} firings of {job} in {idc} have ended")
        return [record["scheduled_time"] for record in await self.idcs[idc].hand.fetch(query, job)]

    async def passed(self, idc: str, job: str) -> None:
        """Orders a pass, and waits for its end."""
        known = await self.idcs[idc].hand.fetchval("SELECT count(*) FROM job_firings WHERE job = $1", job)
        await self.fire(idc, job)
        await self.finished(idc, job, known + 1)

    async def runs(self, idc: str, job: str, ended: int = 0) -> list[RunRecord]:
        """The history, oldest first, once so many runs have ended."""
        fetch = self.idcs[idc].database.fetch

        async def has() -> bool:
            return sum(it.end_time is not None for it in await runs.newest(fetch, job, 100)) >= ended

        await until(has, f"{ended} runs of {job} in {idc} have ended")
        return list(reversed(await runs.newest(fetch, job, 100)))

    async def offsets(self, idc: str, job: str) -> dict[tuple[str, int], int]:
        """Saved offsets of the shards that an IDC serves."""
        records = await self.idcs[idc].hand.fetch(
            "SELECT o.region_code, o.shard, o.seq FROM job_offsets AS o JOIN shard_fences AS f"
            " USING (region_code, shard) WHERE o.job = $1 AND f.mode = 'serving'",
            job,
        )
        return {(record[0], record[1]): record[2] for record in records}

    @asynccontextmanager
    async def runner(self, idc: str, *jobs: Job, **options: Any) -> AsyncIterator[SiteRunner]:
        """A runner, until the block ends; see `tests.support.job_runner_parts.running_runner`."""
        options = {"url": self.idcs[idc].url} | options
        async with running_runner(self.endpoint, self.keys, idc, jobs, seen=self.revision, **options) as runner:
            yield runner

    @asynccontextmanager
    async def whole_runner(self, idc: str, *jobs: Job, **options: Any) -> AsyncIterator[WholeRunner]:
        """A runner with all that its process has; see `tests.support.job_runner_parts.serving_runner`."""
        options = {"url": self.idcs[idc].url} | options
        async with serving_runner(self.endpoint, self.keys, idc, jobs, **options) as runner:
            yield runner


@asynccontextmanager
async def runner_site(
    endpoint: str, pool: RunnerDatabases, *idcs: str, owners: Mapping[str, Sequence[str]] = OWNERS
) -> AsyncIterator[RunnerSite]:
    """Databases of some IDCs, and `LAW` with these owners in a cluster of its own."""
    urls = {idc: await pool.take() for idc in idcs}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(EtcdClient(settings(endpoint)))
        databases = {idc: await stack.enter_async_context(row_database(url)) for idc, url in urls.items()}
        site = RunnerSite(client, endpoint, Keys(f"test-{uuid.uuid4().hex[:8]}"), databases)
        await site.apply()
        for code, names in owners.items():
            await site.open(code, names)
        yield site
    for url in urls.values():
        await pool.give_back(url)
