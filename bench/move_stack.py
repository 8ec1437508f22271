"""The stack that moves are measured on: two IDCs under one law, and RegionCodes of one shard each.

Rows are filled in by SQL, past the gateway, with the fence set to match: half a million of them are there in seconds.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from policy.records import Keys, MoveRecord, RolloutRecord
from policy.rollouts import Orders, Signature
from policy.store import PolicyStore
from regiongate.demo.stack import running_stack
from rowstore.tables import table_name
from runtime.etcd import EtcdClient, EtcdSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from runtime.stack_file import StackFile

DATASET = "customers"
TABLE = table_name(DATASET)
IDCS = ("fra", "ams")
HUGE, LARGE, SMALL, STILL = "DE", "FR", "NL", "BE"
"""RegionCodes of 500,000, 200,000 and 1,000 rows, and one that is not moved."""
ROWS = {HUGE: 500_000, LARGE: 200_000, SMALL: 1_000, STILL: 4_000}
ROLLED = ("AT", "CZ", "DK", "ES", "FI", "GR", "HU", "IT")
"""RegionCodes that a rollout moves together."""
ROLLED_ROWS = 20_000
SECONDS = 300.0

_POLICY = """
version: 1
idcs:
  fra: {{jurisdiction: EU}}
  ams: {{jurisdiction: EU}}
residency:
  - {{name: single, regions: [DE, FR, NL, BE], jurisdictions: [EU], idcs: {{fra: 100}}, shards: 1}}
  - {{name: rolled, regions: [{rolled}], jurisdictions: [EU], idcs: {{{idc}: 100}}, shards: 1}}
datasets:
  customers:
    key: string
    columns:
      name: {{type: string}}
      spend: {{type: int64}}
"""

_FILL = f"""
INSERT INTO {TABLE} (region_code, key, shard, seq, update_time, deleted, name, spend)
SELECT $1, 'row-' || lpad(n::text, 7, '0'), 0, n, now(), false, 'customer ' || lpad(n::text, 8, '0'), n
FROM generate_series(1, $2::bigint) AS n
"""
_FENCE = "UPDATE shard_fences SET last_seq = $2, last_time = now() WHERE region_code = $1 AND shard = 0"


def key(number: int) -> str:
    """The key of one of the filled-in rows."""
    return f"row-{number:07d}"


def document(idc: str) -> str:
    """The policy, with the rolled RegionCodes in one IDC."""
    return _POLICY.format(rolled=", ".join(ROLLED), idc=idc)


@dataclass(frozen=True, slots=True)
class Moved:
    """One move that has come to its end."""

    record: MoveRecord

    @property
    def seconds(self) -> float:
        """From the start of copying until the target served."""
        start, drained = map(datetime.fromisoformat, (self.record.start_time, self.record.drain_time))
        return (drained - start + timedelta(milliseconds=self.record.stall_ms)).total_seconds()


class MoveStack:
    """The running stack, and orders to it."""

    def __init__(self, stack: StackFile, client: EtcdClient) -> None:
        self.stack = stack
        self.keys = Keys(stack.cluster)
        self.client = client
        self._orders = Orders(PolicyStore(client, self.keys))
        self._homes = dict.fromkeys((*ROWS, *ROLLED), "fra")
        self._filled: set[str] = set()

    def home(self, region_code: str) -> str:
        """The IDC that owns the RegionCode's one shard."""
        return self._homes[region_code]

    def other(self, region_code: str) -> str:
        """The IDC that does not."""
        return next(idc for idc in IDCS if idc != self.home(region_code))

    def database(self, idc: str) -> str:
        """URL of the IDC's database."""
        return self.stack.idcs[idc].database

    async def fill(self, region_code: str, rows: int) -> None:
        """Fills the shard in, where it is at home, unless that has been done."""
        if region_code in self._filled:
            return
        self._filled.add(region_code)
        connection = await asyncpg.connect(self.database(self.home(region_code)))
        try:
            async with connection.transaction():
                await connection.execute(_FILL, region_code, rows)
                await connection.execute(_FENCE, region_code, rows)
        finally:
            await connection.close()

    async def tidy(self) -> None:
        """What autovacuum would do sooner or later: old rounds must not weigh on new ones."""
        for idc in IDCS:
            connection = await asyncpg.connect(self.database(idc))
            try:
                for table in (TABLE, "write_requests", "shard_fences"):
                    await connection.execute(f"VACUUM ANALYZE {table}")
            finally:
                await connection.close()

    async def move(self, region_code: str) -> Moved:
        """Moves the RegionCode's shard to the other IDC; returns when nothing of it is left in the first."""
        target = self.other(region_code)
        rollout = (await self._orders.move_shard(region_code, 0, target, Signature("bench"))).rollout
        await self.wait_ended(rollout)
        item = await self.client.get(self.keys.move(rollout, region_code, 0))
        assert item is not None
        record = MoveRecord.decode(item.value)
        assert record.phase == "done", record.note
        self._homes[region_code] = target
        return Moved(record)

    async def wait_ended(self, rollout: str) -> RolloutRecord:
        """Waits for the end of a rollout."""
        key = self.keys.rollout(rollout)
        async with asyncio.timeout(SECONDS):
            async for batch in self.client.follow(key):
                items = (*batch.items, *(event.item for event in batch.events if event.kind == "put"))
                for record in (RolloutRecord.decode(item.value) for item in items if item.key == key):
                    if record.is_ended:
                        return record
        raise AssertionError("a follower does not end by itself")


@asynccontextmanager
async def move_stack() -> AsyncGenerator[MoveStack]:
    """Starts the stack in a temporary folder; its shards have no rows yet."""
    with tempfile.TemporaryDirectory(prefix="regiongate-bench-", ignore_cleanup_errors=True) as folder:
        policy = Path(folder) / "policy.yaml"
        policy.write_text(document("fra"), encoding="utf-8")
        async with (
            running_stack(Path(folder) / "data", policy) as stack,
            EtcdClient(EtcdSettings(endpoints=stack.etcd_endpoints)) as client,
        ):
            yield MoveStack(stack, client)
