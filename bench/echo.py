"""The bare part that unary calls are measured against: a grpc.aio echo on uvloop, in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio
import uvloop

from regiongate.v1 import row_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

METHOD = "/regiongate.bench.Echo/Echo"
_SERIALIZE = row_service_pb2.GetRowRequest.SerializeToString
_PARSE = row_service_pb2.GetRowRequest.FromString


async def _echo(
    request: row_service_pb2.GetRowRequest, _context: grpc.aio.ServicerContext[object, object]
) -> row_service_pb2.GetRowRequest:
    return request


async def serve() -> None:
    """Serves until the process is ended; prints the port first."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(_echo, request_deserializer=_PARSE, response_serializer=_SERIALIZE)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("regiongate.bench.Echo", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


class Echo:
    """A running echo server and a client of it."""

    def __init__(self, pid: int, channel: grpc.aio.Channel) -> None:
        self.pid = pid
        self._call = channel.unary_unary(METHOD, request_serializer=_SERIALIZE, response_deserializer=_PARSE)

    async def call(self, request: row_service_pb2.GetRowRequest) -> None:
        """One echo."""
        await self._call(request, timeout=10)


@asynccontextmanager
async def running_echo() -> AsyncGenerator[Echo]:
    """Starts the echo server and connects to it."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.echo", stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 10))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Echo(process.pid, channel)
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(serve())
