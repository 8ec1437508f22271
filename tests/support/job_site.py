"""Two IDCs of one law with a few rows, and jobs as runners would have left them in the databases and in etcd."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from policy.records import Keys, RunnerRecord
from regiongate.v1 import row_service_pb2, types_pb2
from rowstore.database import Database
from rowstore.jobs import offsets, registry, runs
from rowstore.jobs.model import Advance, Claim, JobRecord, RunRecord, RunResult, SetAside
from rowstore.model import ShardEpoch
from runtime.etcd import EtcdClient, EtcdSettings
from tests.support.gateways import EUROPE, running_site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.embedded.postgres import EmbeddedPostgres
    from tests.support.gateways import Site

IDCS = ("ams", "fra")
ROWS = 40


class JobSite:
    """Fills in what runners write."""

    def __init__(self, site: Site, databases: dict[str, Database], etcd: EtcdClient) -> None:
        self.site = site
        self.databases = databases
        self.etcd = etcd
        self.keys = Keys(site.cluster)

    def jobs(self, idc: str = "fra"):
        """JobService of one gateway."""
        return self.site[idc].jobs

    async def register(self, job: str, *idcs: str, kind: str = "batch", regions: tuple[str, ...] = ()) -> None:
        """The job was run in the IDCs; in both, without any."""
        record = JobRecord(job, "customers", "per shard", kind, json.dumps({"regions": regions}))
        for idc in idcs or IDCS:
            await registry.register(self.databases[idc].fetch, record)

    def shards(self, idc: str) -> list[ShardEpoch]:
        """What an IDC owns."""
        table = self.site[idc].table
        assert table is not None
        return [ShardEpoch(it.region_code, it.shard, it.epoch) for it in table.all_routes() if it.idc == idc]

    async def claim(self, job: str, idc: str, runner: str = "r1") -> list[Claim]:
        """A runner takes all of the IDC's shards."""
        return await offsets.claim(self.databases[idc].fetch, job, runner, self.shards(idc))

    async def handle(self, job: str, idc: str) -> int:
        """A runner handles all rows of the IDC; returns how many shards that is."""
        claims = await self.claim(job, idc)
        for held in claims:
            await offsets.advance(self.databases[idc].fetch, job, held, Advance(held.last_seq, held.last_seq))
        return len(claims)

    async def set_aside(self, job: str, idc: str, *keys: str) -> None:
        """A runner sets rows of the IDC's first shard aside."""
        held = (await self.claim(job, idc))[0]
        for number, key in enumerate(keys, 1):
            row = SetAside(held.region_code, held.shard, number, key, 5, "ValueError", f"cannot digest {key}")
            await offsets.set_aside(self.databases[idc].fetch, job, row)

    async def stop(self, job: str, idc: str) -> None:
        """The job stops in the IDC's first shard, after a failure."""
        held = (await self.claim(job, idc))[0]
        await offsets.note_failure(self.databases[idc].fetch, job, held, "ValueError")
        await offsets.stop_at(self.databases[idc].fetch, job, held)

    async def run(self, job: str, idc: str, run: str, result: RunResult = RunResult.DONE) -> None:
        """A run begins and ends."""
        record = RunRecord(run, job, "r1", 1, 2, result, rows=7, batches=1, reason="nothing is left")
        await runs.start(self.databases[idc].fetch, record)
        await runs.tell(self.databases[idc].fetch, record)

    async def runner(self, idc: str, name: str, *jobs: str) -> None:
        """A runner lives."""
        record = RunnerRecord(name, idc, jobs)
        await self.etcd.put(self.keys.runner(idc, name), record.encode())

    async def count(self, idc: str, statement: str, *arguments: object) -> int:
        """The one number that a statement gives."""
        return (await self.databases[idc].fetch(statement, *arguments))[0][0]


@asynccontextmanager
async def job_site(etcd_endpoint: str, server: EmbeddedPostgres) -> AsyncIterator[JobSite]:
    """Gateways in fra and ams with rows of DE."""
    async with running_site(etcd_endpoint, server, "fra", "ams", policy=EUROPE) as site, filled(site) as filling:
        await write_rows(site)
        yield filling


@asynccontextmanager
async def filled(site: Site) -> AsyncIterator[JobSite]:
    """What writes as runners do, into the databases of a site."""
    async with (
        EtcdClient(EtcdSettings((site.etcd_endpoint,))) as client,
        Database.open(site.databases["fra"], size=2) as fra,
        Database.open(site.databases["ams"], size=2) as ams,
    ):
        yield JobSite(site, {"fra": fra, "ams": ams}, client)


async def write_rows(site: Site) -> None:
    """A few rows in every shard."""
    writes = [
        row_service_pb2.RowWrite(
            region_code="DE",
            key=types_pb2.Key(string_key=f"key-{number}"),
            put=row_service_pb2.RowContent(columns={"spend": types_pb2.Value(int64_value=number)}),
        )
        for number in range(ROWS)
    ]
    request = row_service_pb2.BatchWriteRowsRequest(dataset="customers", writes=writes)
    response = await site["fra"].rows.BatchWriteRows(request, timeout=10)
    assert not [result.error.reason for result in response.results if result.HasField("error")]
