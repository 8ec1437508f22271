"""The stack that jobs are measured on: one IDC, three RegionCodes of four shards, and job runners beside it.

Rows are filled in by SQL, past the gateway, with the fences set to match.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from bench.job_followers import FEW
from bench.job_handlers import DATASET, MANY, SOME
from regiongate.demo.stack import running_stack
from rowstore.database import Database
from rowstore.jobs import firings, registry
from rowstore.tables import table_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from runtime.stack_file import StackFile

IDC = "fra"
TABLE = table_name(DATASET)
VALUES = "name, country, population, latitude, longitude"
SHARDS = 4
ROWS = {MANY: 500_000, SOME: 200_000}
SECONDS = 120.0

_POLICY = f"""
version: 1
idcs:
  {IDC}: {{jurisdiction: EU}}
residency:
  - {{name: europe, regions: [{", ".join((*ROWS, FEW))}], jurisdictions: [EU], idcs: {{{IDC}: 100}}, shards: {SHARDS}}}
datasets:
  {DATASET}:
    key: string
    columns:
      name: {{type: string}}
      country: {{type: string}}
      population: {{type: int64}}
      latitude: {{type: double}}
      longitude: {{type: double}}
"""

_FILL = f"""
INSERT INTO {TABLE} (region_code, key, shard, seq, update_time, deleted, {VALUES})
SELECT $1::text, 'place-' || $2::int::text || '-' || lpad(n::text, 7, '0'), $2::int, n, now(), false,
    'Place number ' || n, $1::text, n * 7, n / 1000.0, n / -999.0
FROM generate_series(1, $3::bigint) AS n
"""
_FENCE = """
UPDATE shard_fences SET last_seq = $3, last_time = now()
WHERE region_code = $1 AND shard = $2 AND mode = 'serving' RETURNING 1
"""
_START_AGAIN = "UPDATE job_offsets SET seq = 0, rows = 0, pass_time = NULL WHERE job = $1"
_TOOK = """
SELECT extract(epoch FROM end_time - create_time)::float8 FROM job_firings
WHERE job = $1 AND scheduled_time = $2 AND end_time IS NOT NULL
"""
_HANDLED = "SELECT coalesce(sum(rows), 0)::bigint FROM job_offsets WHERE job = $1"


class JobStack:
    """The running stack, and orders to its jobs."""

    def __init__(self, stack: StackFile, hand: asyncpg.Connection, database: Database) -> None:
        self.stack = stack
        self.hand = hand
        self._database = database

    @property
    def url(self) -> str:
        """The IDC's database."""
        return self.stack.idcs[IDC].database

    async def fill(self) -> None:
        """Fills the shards in, and lets the server write down what it will."""
        for region_code, rows in ROWS.items():
            for shard in range(SHARDS):
                async with self.hand.transaction():
                    await self.hand.execute(_FILL, region_code, shard, rows // SHARDS)
                    assert await self.hand.fetchval(_FENCE, region_code, shard, rows // SHARDS)
        await self.hand.execute("CHECKPOINT")
        await self.tidy(TABLE, "shard_fences")

    async def tidy(self, *tables: str) -> None:
        """What autovacuum would do sooner or later: old rounds must not weigh on new ones."""
        for table in (*tables, "job_offsets"):
            await self.hand.execute(f"VACUUM ANALYZE {table}")

    @asynccontextmanager
    async def running(
        self, module: str, environment: Mapping[str, str] | None = None
    ) -> AsyncGenerator[asyncio.subprocess.Process]:
        """A runner of a module's jobs, as an operator would start it, with more variables of its own."""
        own = {
            "idc": IDC,
            "runner": "bench",
            "cluster": self.stack.cluster,
            "etcd_endpoints": ",".join(self.stack.etcd_endpoints),
            "database_url": self.url,
            "metrics_port": "0",
            "log_level": "error",
        }
        settings = {f"REGIONGATE_{name.upper()}": value for name, value in own.items()}
        command = (sys.executable, "-m", "regiongate.cli.main", "jobs", "run", module)
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **settings, **(environment or {})})
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()

    async def run(self, job: str, rows: int) -> float:
        """One pass over all rows, from the order until the job is done; returns rows a second."""
        await self.hand.execute(_START_AGAIN, job)
        await self.tidy()
        async with asyncio.timeout(SECONDS):
            # A runner makes its jobs known when it starts.
            while (fired := await firings.trigger(self._database.fetch, job, "bench")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await registry.ring(self._database.fetch)
            while (seconds := await self.hand.fetchval(_TOOK, job, fired)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        handled = await self.hand.fetchval(_HANDLED, job)
        assert handled == rows, f"{handled} rows of {rows}"
        return rows / seconds


@asynccontextmanager
async def job_stack() -> AsyncGenerator[JobStack]:
    """Starts the stack in a temporary folder, with rows."""
    with tempfile.TemporaryDirectory(prefix="regiongate-bench-", ignore_cleanup_errors=True) as folder:
        policy = Path(folder) / "policy.yaml"
        policy.write_text(_POLICY, encoding="utf-8")
        async with running_stack(Path(folder) / "data", policy) as stack:
            url = stack.idcs[IDC].database
            hand = await asyncpg.connect(url)
            try:
                async with Database.open(url, size=2) as database:
                    made = JobStack(stack, hand, database)
                    await made.fill()
                    yield made
            finally:
                await hand.close()
