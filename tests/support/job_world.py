"""Two IDCs on real PostgreSQL, the moves of their shards, and runners that may hold anything for however long."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import asyncpg

from policy.errors import ClaimLost
from rowstore.jobs import firings, offsets
from rowstore.jobs.model import Advance
from rowstore.model import ShardEpoch
from rowstore.moving import Mover, MoveStep
from tests.support.job_stores import JOB, LEDGER, change, enter, register
from tests.support.postgres import create_database
from tests.support.row_databases import MovePair, RowDatabase, prepare, row_database

if TYPE_CHECKING:
    from datetime import datetime

    from rowstore.fences import FenceState
    from rowstore.jobs.model import Claim, PendingShard
    from rowstore.moving.model import ShardDigest
    from runtime.embedded.postgres import EmbeddedPostgres

IDCS: Final = ("a", "b")
SHARDS: Final = (0, 1)
TABLES: Final = ("job_offsets", "job_set_aside", "effects_ledger", "rows_customers")
RESET: Final = "".join(
    f"DELETE FROM {table};"
    for table in (*TABLES, "write_requests", "shard_fences", "shard_imports", "shard_purges", "job_firings", "jobs")
)

Contents = dict[tuple[str, int], tuple[tuple[int, int] | None, list[int], int]]
"""By IDC and shard: sequence and token of the offset, the ledger's sequences, and the number of all rows."""


@dataclass(eq=False)
class Batch:
    """Rows that a runner has read, and perhaps a transaction in which its handler has been at work."""

    idc: str
    held: Claim
    seqs: list[int]
    through: int
    last_seq: int
    connection: asyncpg.Connection | None = None
    transaction: object = field(default=None, repr=False)


class JobWorld:
    """Everything that a step of the machine asks of the two databases."""

    def __init__(self, idcs: dict[str, RowDatabase], movers: dict[str, Mover], stack: AsyncExitStack) -> None:
        self.idcs = idcs
        self.movers = movers
        self._stack = stack
        self._idle: dict[str, list[asyncpg.Connection]] = {idc: [] for idc in IDCS}
        self._number = 0

    @classmethod
    async def open(cls, server: EmbeddedPostgres) -> JobWorld:
        """Makes two databases."""
        stack = AsyncExitStack()
        idcs: dict[str, RowDatabase] = {}
        movers: dict[str, Mover] = {}
        for idc in IDCS:
            url = await create_database(server)
            await prepare(url)
            idcs[idc] = await stack.enter_async_context(row_database(url))
            await idcs[idc].hand.execute(LEDGER)
            movers[idc] = await stack.enter_async_context(Mover(idcs[idc].database))
        return cls(idcs, movers, stack)

    async def close(self) -> None:
        """Ends all connections."""
        for connections in self._idle.values():
            for connection in connections:
                await connection.close()
        await self._stack.aclose()

    async def reset(self) -> None:
        """As on the first day: all shards are the first IDC's, and the job is known everywhere."""
        for idc in self.idcs.values():
            await idc.hand.execute(RESET)
            await register(idc)
        await self.idcs[IDCS[0]].store.fences.open([ShardEpoch("DE", shard, 1) for shard in SHARDS])

    # ---- rows ----

    async def put(self, idc: str, shard: int, epoch: int, number: int) -> int:
        """Writes rows under new keys; returns the last sequence."""
        self._number += number
        keys = [f"k{self._number - index}" for index in range(number)]
        return await change(self.idcs[idc], *keys, shard=shard, epoch=epoch)

    # ---- runners ----

    async def claim(self, idc: str, runner: str, shard: int, epoch: int) -> Claim | None:
        """Takes a shard, if it is to be had."""
        wanted = [ShardEpoch("DE", shard, epoch)]
        claims = await offsets.claim(self.idcs[idc].database.fetch, JOB, runner, wanted)
        return claims[0] if claims else None

    async def read(self, idc: str, held: Claim, limit: int) -> Batch | None:
        """A page, as a runner reads it: under the fence, from where the claim is; None when the fence says no."""
        records = await self.idcs[idc].hand.fetch(
            "SELECT f.last_seq, r.seq FROM shard_fences AS f LEFT JOIN LATERAL (SELECT seq FROM rows_customers AS r"
            " WHERE r.region_code = f.region_code AND r.shard = f.shard AND r.seq > $4 ORDER BY r.seq LIMIT $5) AS r"
            " ON true WHERE f.region_code = $1 AND f.shard = $2 AND f.epoch = $3 AND f.mode IN ('serving', 'draining')",
            *(held.region_code, held.shard, held.epoch, held.seq, limit),
        )
        if not records:
            return None
        seqs = [record["seq"] for record in records if record["seq"] is not None]
        last_seq = records[0]["last_seq"]
        return Batch(idc, held, seqs, seqs[-1] if len(seqs) == limit else last_seq, last_seq)

    async def begin(self, batch: Batch) -> None:
        """The handler is at work: its entries are in a transaction that nobody has committed."""
        idle = self._idle[batch.idc]
        batch.connection = idle.pop() if idle else await asyncpg.connect(self.idcs[batch.idc].url)
        batch.transaction = batch.connection.transaction()
        await batch.transaction.start()
        await enter(batch.connection, batch.held, batch.seqs)

    async def commit(self, batch: Batch, firing: datetime | None = None) -> bool:
        """Effects and offset in one transaction; whether it was done."""
        if batch.connection is None:
            await self.begin(batch)
        held = batch.held
        assert batch.connection is not None
        step = Advance(batch.through, len(batch.seqs), pass_time=firing, after=held.seq)
        try:
            await offsets.advance(batch.connection.fetch, JOB, held, step)
        except ClaimLost:
            await self.roll_back(batch)
            return False
        await batch.transaction.commit()
        self._free(batch)
        return True

    async def roll_back(self, batch: Batch) -> None:
        """The handler has failed, or its runner has died."""
        if batch.connection is not None:
            await batch.transaction.rollback()
            self._free(batch)

    def _free(self, batch: Batch) -> None:
        assert batch.connection is not None
        self._idle[batch.idc].append(batch.connection)
        batch.connection = batch.transaction = None

    # ---- firings ----

    async def fire(self, idc: str) -> datetime:
        """By hand."""
        time = await firings.trigger(self.idcs[idc].database.fetch, JOB, "manual")
        assert time is not None
        return time

    async def finish(self, idc: str, firing: datetime) -> bool:
        """Whether it was ended by this."""
        return (await firings.finish(self.idcs[idc].database.fetch, JOB, firing, ["DE"], is_global=False))[0]

    async def pending(self, idc: str, firing: datetime | None) -> list[PendingShard]:
        """Shards with work."""
        fetch = self.idcs[idc].database.fetch
        modes = ("serving", "draining")
        return await offsets.pending(fetch, JOB, ["DE"], firing=firing, is_global=False, modes=modes)

    # ---- moves ----

    async def copy(self, source: str, target: str, step: MoveStep) -> None:
        """One import from where it was."""
        await self._pair(source, target).copy(step)

    async def close_shard(self, source: str, step: MoveStep) -> FenceState:
        """Drained before."""
        return await self.movers[source].close(step)

    async def last_round(self, source: str, target: str, step: MoveStep, last_seq: int) -> ShardDigest:
        """Everything is there, and the target opens."""
        progress = await self._pair(source, target).copy(step, closed_at_seq=last_seq)
        assert progress.digest is not None
        return progress.digest

    def _pair(self, source: str, target: str) -> MovePair:
        return MovePair(self.idcs[source], self.idcs[target], self.movers[source], self.movers[target])

    # ---- what is there ----

    async def contents(self) -> Contents:
        """What jobs keep in both databases."""
        found: Contents = {(idc, shard): (None, [], 0) for idc in IDCS for shard in SHARDS}
        for name, idc in self.idcs.items():
            records = await idc.hand.fetch(
                "SELECT s AS shard, o.seq, o.token,"
                " ARRAY(SELECT l.seq FROM effects_ledger AS l WHERE l.shard = s ORDER BY l.seq) AS entries,"
                + " + ".join(f"(SELECT count(*) FROM {table} WHERE shard = s)" for table in TABLES)
                + " AS rows FROM unnest($2::int[]) AS s LEFT JOIN job_offsets AS o ON o.shard = s AND o.job = $1",
                JOB,
                list(SHARDS),
            )
            for record in records:
                offset = None if record["seq"] is None else (record["seq"], record["token"])
                found[name, record["shard"]] = (offset, list(record["entries"]), record["rows"])
        return found
