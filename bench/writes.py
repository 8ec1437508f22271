"""Figures about writes: concurrent single puts, and batches.

Both sides write the same rows to the same server, durably, with as many batches in flight. The rows are scattered over
200,000 keys, so that rounds insert at first and update later, as real loads do: a few thousand rows written again and
again would lie in memory, and queue for each other's locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import regiongate
from bench.bare import bare_table
from bench.harness import Figure, Reach, alternate, drive, summarise
from bench.rows import DATASET, IDC, REGION, values, written_key

if TYPE_CHECKING:
    from runtime.stack_file import StackFile

SECONDS = 2.0
CALLERS = 256
CONNECTIONS = 16
BATCH = 500
BATCHES_IN_FLIGHT = 4


async def put_exchange(stack: StackFile, rounds: int) -> Figure:
    """Durable SDK puts against single-row upserts by asyncpg on the same server."""
    entry = stack.idcs[IDC]
    async with bare_table(entry.database, CONNECTIONS) as bare, regiongate.connect(entry.gateway) as client:

        async def ours() -> float:
            calls, seconds = await drive(
                CALLERS, SECONDS, lambda number: client.put(DATASET, REGION, written_key(number), values(number))
            )
            return calls / seconds

        async def baseline() -> float:
            calls, seconds = await drive(CONNECTIONS, SECONDS, bare.upsert)
            return calls / seconds

        measured = await alternate(rounds, ours, baseline)
    return summarise("put_exchange", "calls/s", "asyncpg upsert", Reach(1.2, at_least=True), measured)


async def batch_write(stack: StackFile, rounds: int) -> Figure:
    """Batches of 500 through BatchWriteRows against asyncpg upserts of the same rows by `unnest`."""
    entry = stack.idcs[IDC]
    async with bare_table(entry.database, BATCHES_IN_FLIGHT) as bare, regiongate.connect(entry.gateway) as client:

        async def put(batch: int) -> None:
            rows = range(batch * BATCH, (batch + 1) * BATCH)
            writes = [regiongate.Put(REGION, written_key(n), values(n)) for n in rows]
            for result in await client.batch_write(DATASET, writes):
                if isinstance(result, Exception):
                    raise result

        async def ours() -> float:
            batches, seconds = await drive(BATCHES_IN_FLIGHT, SECONDS, put)
            return batches * BATCH / seconds

        async def baseline() -> float:
            batches, seconds = await drive(
                BATCHES_IN_FLIGHT, SECONDS, lambda n: bare.upsert_many(range(n * BATCH, (n + 1) * BATCH))
            )
            return batches * BATCH / seconds

        measured = await alternate(rounds, ours, baseline)
    return summarise("batch_write", "rows/s", "asyncpg unnest upsert", Reach(0.5, at_least=True), measured)
