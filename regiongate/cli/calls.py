"""A channel to a gateway for commands that call its services directly."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from regiongate.cli.context import resolve_target
from regiongate.cli.failures import CommandFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc.aio

    from regiongate.cli.entry import Entry

_CONNECT_SECONDS = 3.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


@asynccontextmanager
async def gateway_channel(entry: Entry) -> AsyncGenerator[grpc.aio.Channel]:
    """A channel to the first of the entry's gateways that takes a connection."""
    addresses = resolve_target(entry.target, entry.data_dir, entry.idc).split(",")
    for address in addresses:
        channel = _open(address.strip(), entry)
        try:
            try:
                await asyncio.wait_for(channel.channel_ready(), _CONNECT_SECONDS)
            except TimeoutError:
                continue
            yield channel
            return
        finally:
            await channel.close()
    raise CommandFailed("NO_GATEWAY", f"no gateway answers at {', '.join(addresses)}", "see `regiongate doctor`")


def _open(address: str, entry: Entry) -> grpc.aio.Channel:
    import grpc.aio  # noqa: PLC0415 (takes 100 ms to load; --help needs none)

    options = (("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),)
    if entry.ca_file is None:
        return grpc.aio.insecure_channel(address, options=options)
    ca, key, cert = (file.read_bytes() if file else None for file in (entry.ca_file, entry.key_file, entry.cert_file))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options=options)
