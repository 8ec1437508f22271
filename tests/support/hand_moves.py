"""A test in place of the controller: it writes the records of one shard's move, and asks the IDCs for its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from policy import move
from policy.move import MoveEvent
from policy.records import Keys, ShardRecord
from regiongate.v1 import shard_service_pb2 as pb
from tests.support.gateways import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.model import Phase
    from runtime.etcd import EtcdClient
    from tests.support.gateways import Site

STEP_SECONDS = 10


class HandMove:
    """The move of one shard to `target`."""

    def __init__(self, site: Site, client: EtcdClient, region_code: str, shard: int, target: str) -> None:
        self.site = site
        self.region_code, self.shard, self.target = region_code, shard, target
        self._client = client
        self._key = Keys(site.cluster).shard(region_code, shard)
        self.reference = pb.MoveRef()
        self.source = ""

    async def record(self) -> ShardRecord:
        """The record as it is."""
        item = await self._client.get(self._key)
        assert item is not None
        return ShardRecord.decode(item.value)

    async def write(self, record: ShardRecord) -> None:
        """Replaces the record."""
        await self._client.put(self._key, record.encode())

    async def start(self) -> None:
        """serving -> copying, and the source knows of it."""
        before = await self.record()
        self.source = before.owner
        record = move.start(before, self.target, "by-hand", "")
        self._refer(record.epoch, record.attempt)
        await self.write(record)
        await self.ask(self.source, "BeginExport", pb.BeginExportRequest(move=self.reference))

    async def copy(self, closed_at_seq: int | None = None) -> pb.ImportShardResponse:
        """The target's import, to its end."""
        request = pb.ImportShardRequest(move=self.reference, closed_at_seq=closed_at_seq)
        messages = [message async for message in self.site[self.target].shards.ImportShard(request)]
        assert [message.is_done for message in messages] == [False] * (len(messages) - 1) + [True]
        return messages[-1]

    async def drain(self) -> None:
        """copying -> draining."""
        await self._advance(MoveEvent.COPIED)
        await self.ask(self.source, "DrainShard", pb.DrainShardRequest(move=self.reference))

    async def close(self) -> pb.ImportShardResponse:
        """draining -> closing, and the last changes follow."""
        await self._advance(MoveEvent.DRAINED)
        closed = await self.ask(self.source, "CloseShard", pb.CloseShardRequest(move=self.reference))
        return await self.copy(closed.fence.last_seq)

    async def switch(self, last: pb.ImportShardResponse) -> None:
        """closing -> opening -> purging."""
        await self.write(move.switch(await self.record(), last.digest.rows, last.digest.digest))
        await self.ask(self.target, "OpenShard", pb.OpenShardRequest(move=self.reference))
        await self._advance(MoveEvent.OPENED)

    async def purge(self) -> pb.PurgeShardResponse:
        """purging -> serving."""
        (left,) = (await self.record()).leftovers
        request = pb.PurgeShardRequest(move=self.reference)
        if left.digest:
            request.expected.CopyFrom(pb.ShardDigest(rows=left.rows, digest=left.digest))
        proof = await self.ask(left.idc, "PurgeShard", request)
        await self.write(move.purge(await self.record(), left.idc))
        return proof

    async def call_off(self) -> None:
        """-> aborting -> purging."""
        record = move.advance(await self.record(), MoveEvent.CALLED_OFF)
        self._refer(record.epoch, record.attempt)
        await self.write(record)
        await self.ask(self.source, "ReopenShard", pb.ReopenShardRequest(move=self.reference))
        await self._advance(MoveEvent.REOPENED)

    async def whole(self) -> None:
        """All of it."""
        await self.start()
        await self.copy()
        await self.drain()
        await self.switch(await self.close())
        proof = await self.purge()
        assert proof.remaining == 0

    async def ask(self, idc: str, name: str, request: Any) -> Any:
        """One step."""
        return await getattr(self.site[idc].shards, name)(request, timeout=STEP_SECONDS)

    async def seen(self, phase: Phase, *idcs: str) -> None:
        """Waits until the gateways have seen the phase."""
        for idc in idcs or self.site.gateways:
            await until(lambda idc=idc: self.site[idc].table.route(self.region_code, self.shard).phase is phase)

    async def _advance(self, event: MoveEvent) -> None:
        await self.write(move.advance(await self.record(), event))

    def _refer(self, epoch: int, attempt: int) -> None:
        self.reference = pb.MoveRef(
            region_code=self.region_code,
            shard=self.shard,
            epoch=epoch,
            attempt=attempt,
            source_idc=self.source,
            target_idc=self.target,
        )


async def stored(site: Site, idc: str, region_code: str, shard: int) -> Sequence[asyncpg.Record]:
    """Everything of a shard of customers that lies in an IDC's database."""
    connection = await asyncpg.connect(site.databases[idc])
    try:
        columns = "key, seq, deleted, name, spend"
        where = "region_code = $1 AND shard = $2"
        return await connection.fetch(f"SELECT {columns} FROM rows_customers WHERE {where}", region_code, shard)
    finally:
        await connection.close()
