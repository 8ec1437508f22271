"""A runner's part in the store of jobs, step by step, with a ledger of effects that tells what was done twice."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg

from rowstore.jobs import offsets, registry
from rowstore.jobs.model import Advance, Claim, JobRecord
from rowstore.model import ShardEpoch
from tests.support.row_databases import CUSTOMERS, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from rowstore.database import Database
    from tests.support.row_databases import RowDatabase

JOB: Final = "settle"

LEDGER: Final = """
CREATE TABLE effects_ledger (
    region_code text COLLATE "C" NOT NULL, shard integer NOT NULL, entry uuid NOT NULL DEFAULT gen_random_uuid(),
    seq bigint NOT NULL, PRIMARY KEY (region_code, shard, entry)
)
"""
"""An entry for each change that a batch was given; nothing in it forbids to enter one twice."""


def job_record(name: str = JOB, **fields: str) -> JobRecord:
    """A batch job over customers."""
    known = {"dataset": "customers", "scan": "per shard", "kind": "batch"}
    return JobRecord(name, **known | fields)


async def register(idc: RowDatabase, name: str = JOB, **fields: str) -> JobRecord:
    """Makes a job known."""
    return await registry.register(idc.database.fetch, job_record(name, **fields))


async def change(idc: RowDatabase, *keys: str, shard: int = 0, epoch: int = 1) -> int:
    """Writes rows; returns the sequence of the last one."""
    outcomes = await idc.store.write(CUSTOMERS, [put(key, {"spend": 1}, shard=shard, epoch=epoch) for key in keys])
    return outcomes[-1].version


async def take(
    idc: RowDatabase | Database, runner: str = "one.1", *, shard: int = 0, epoch: int = 1, job: str = JOB
) -> Claim:
    """Claims one shard, which must be there to be had."""
    database = idc.database if hasattr(idc, "database") else idc
    (claim,) = await offsets.claim(database.fetch, job, runner, [ShardEpoch("DE", shard, epoch)])
    return claim


@asynccontextmanager
async def connected(idc: RowDatabase) -> AsyncIterator[asyncpg.Connection]:
    """A runner's connection for effects."""
    connection = await asyncpg.connect(idc.url)
    try:
        yield connection
    finally:
        await connection.close()


async def enter(connection: asyncpg.Connection, held: Claim, seqs: Iterable[int]) -> None:
    """What a handler does: an entry for each change."""
    await connection.execute(
        "INSERT INTO effects_ledger (region_code, shard, seq) SELECT $1, $2, unnest($3::bigint[])",
        held.region_code,
        held.shard,
        list(seqs),
    )


async def commit(idc: RowDatabase, held: Claim, seqs: Iterable[int], step: Advance | None = None) -> Claim:
    """A batch from beginning to end; returns the claim to go on with. Raises `ClaimLost` with nothing done."""
    seqs = list(seqs)
    step = step or Advance(max(seqs), rows=len(seqs), after=held.seq)
    async with connected(idc) as connection, connection.transaction():
        await enter(connection, held, seqs)
        await offsets.advance(connection.fetch, JOB, held, step)
    return held._replace(seq=step.seq, failures=0)


async def ledger(idc: RowDatabase, shard: int = 0) -> list[int]:
    """The changes that were entered, each as often as it was."""
    records = await idc.hand.fetch("SELECT seq FROM effects_ledger WHERE shard = $1 ORDER BY seq", shard)
    return [record[0] for record in records]


async def offset(idc: RowDatabase, shard: int = 0, job: str = JOB) -> tuple[int, int] | None:
    """Sequence and token."""
    record = await idc.hand.fetchrow(
        "SELECT seq, token FROM job_offsets WHERE job = $1 AND region_code = 'DE' AND shard = $2", job, shard
    )
    return None if record is None else tuple(record)
