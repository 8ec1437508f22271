"""`regiongate.connect(...)`: from a target to an open client."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from gateway.client.client import Client
from gateway.client.model import ClientSettings, seconds_of
from policy.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.client.model import TlsFiles
    from runtime.telemetry.tracing import Tracing


def parse_target(target: str) -> tuple[str, ...]:
    """The addresses of a comma list of host:port; raises `InvalidInput`."""
    addresses = tuple(dict.fromkeys(part.strip() for part in target.split(",") if part.strip()))
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise InvalidInput(f"{address!r} is not host:port", field_name="target")
    if not addresses:
        raise InvalidInput("no gateway is given", field_name="target")
    return addresses


@asynccontextmanager
async def connect(
    target: str,
    *,
    purpose: str = "",
    tls: TlsFiles | None = None,
    timeout: timedelta | float = timedelta(seconds=10),
    direct: bool = True,
    tracing: Tracing | None = None,
    settings: ClientSettings | None = None,
) -> AsyncGenerator[Client]:
    """Connects to a cluster by its nearest gateways.

    Args:
        target: Gateways of the home IDC, host:port by comma; whichever answers is used.
        purpose: Stated with every call that states no other.
        tls: Files for TLS; plaintext when None, which gateways speak on loopback only unless told otherwise.
        timeout: For a call with all its retries, when the call says nothing else; a bare number is seconds.
        direct: Whether to go straight to the owner; otherwise the home gateway forwards.
        tracing: Where client spans go; without it the application's own trace context still travels.
        settings: All settings at once, in place of the four above.

    Raises:
        RegiongateError: No gateway of the target answers.
    """
    chosen = settings or ClientSettings(
        purpose=purpose, tls=tls, timeout=timedelta(seconds=seconds_of(timeout)), direct=direct
    )
    client = Client(parse_target(target), chosen, tracing)
    try:
        await client.open()
        yield client
    finally:
        await client.close()
