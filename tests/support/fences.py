"""An IDC's peer listener as far as the controller needs it, with fences in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1.shard_service_pb2_grpc import ShardServiceServicer, add_ShardServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Fences(ShardServiceServicer):
    """Opens fences as an IDC's database would: one that exists is left alone."""

    def __init__(self) -> None:
        self.epochs: dict[tuple[str, int], int] = {}
        self.is_down = False
        self.calls = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.address = ""

    async def OpenShards(self, request, context):  # noqa: N802
        self.calls += 1
        await self.flowing.wait()
        if self.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the database is down")
        fences = []
        for ref in request.shards:
            epoch = self.epochs.setdefault((ref.region_code, ref.shard), ref.epoch)
            fences.append(pb.ShardFence(region_code=ref.region_code, shard=ref.shard, epoch=epoch, mode="serving"))
        return pb.OpenShardsResponse(fences=fences)


@asynccontextmanager
async def serving_fences() -> AsyncIterator[Fences]:
    """Serves on a free port."""
    fences = Fences()
    server = grpc.aio.server()
    add_ShardServiceServicer_to_server(fences, server)
    fences.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fences
    finally:
        fences.flowing.set()
        await server.stop(0)
