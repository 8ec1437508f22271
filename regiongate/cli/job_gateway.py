"""How a job runner reaches the gateway of its IDC: the SDK's client for handlers, and a look at how fast it answers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.client import TlsFiles, connect
from policy.errors import PeerUnreachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from gateway.client import Client


class JobGateway:
    """Makes connections to the gateways of one IDC."""

    def __init__(
        self, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
    ) -> None:
        """Without a CA file, plaintext is spoken."""
        self._tls = TlsFiles(ca_file, cert_file, key_file) if ca_file else None

    @asynccontextmanager
    async def connect(self, targets: str) -> AsyncGenerator[Client]:
        """The SDK's client; `targets` is host:port by comma. Raises `RegiongateError` when none answers."""
        async with connect(targets, tls=self._tls) as client:
            yield client

    @asynccontextmanager
    async def open_ping(self, targets: str) -> AsyncGenerator[Ping]:
        """Something to measure the first of the gateways by."""
        async with self._channel(targets.partition(",")[0]) as channel:
            yield Ping(channel)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(address)
        files = (self._tls.ca_file, self._tls.key_file, self._tls.cert_file)
        ca, key, cert = (file.read_bytes() if file else None for file in files)
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert))


class Ping:
    """Asks a gateway for its health."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # The generated class serves both kinds of channels, and knows the types of one.
        self._stub = cast("Any", health_pb2_grpc.HealthStub(channel))

    async def __call__(self, timeout: float) -> None:
        """Returns when it has answered; raises `PeerUnreachable` when it has not, within so many seconds."""
        try:
            await self._stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            failure = PeerUnreachable(f"the gateway does not answer ({error.code().name})")
        else:
            return
        raise failure
