"""The small HTTP server beside every process: `/metrics`, `/healthz` and `/readyz`.

`/healthz` answers as long as the event loop turns. `/readyz` answers 503 until the process can do its work, and names
what is missing.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import uvicorn
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

_BACKLOG = 64
_SHUTDOWN_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the process can do its work, and each thing that it needs for it."""

    is_ready: bool
    checks: Mapping[str, str] = field(default_factory=dict[str, str])
    """Name -> `ok`, or what is missing."""


class TelemetryServer:
    """A running server; `async with` stops it at the end."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self._server = server
        self._listener = listener
        self.port: int = listener.getsockname()[1]

    async def stop(self) -> None:
        """Closes the listener and the connections."""
        self._server.force_exit = True
        await self._server.shutdown(sockets=[self._listener])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def serve_telemetry(host: str, port: int, readiness: Callable[[], Readiness]) -> TelemetryServer:
    """Starts serving in the running event loop; port 0 takes any free one.

    Raises `OSError` when the address is taken.
    """
    listener = _listen(host, port)
    config = uvicorn.Config(
        _application(readiness),
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    config.load()
    server = uvicorn.Server(config)
    # Not `serve()`: it takes over the signal handlers, which are the process's own (runtime.lifecycle).
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    return TelemetryServer(server, listener)


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _application(readiness: Callable[[], Readiness]) -> Starlette:
    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(REGISTRY), headers={"content-type": content_type})

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        state = readiness()
        body = {"ready": state.is_ready, "checks": dict(state.checks)}
        return JSONResponse(body, status_code=200 if state.is_ready else 503)

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)])
