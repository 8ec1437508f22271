"""One gateway's address: its channel, and whether it is worth trying now."""

from __future__ import annotations

from random import uniform
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

import grpc
import grpc.aio

from regiongate.v1 import routing_service_pb2_grpc, row_service_pb2_grpc

if TYPE_CHECKING:
    from gateway.client.model import TlsFiles
    from regiongate.v1 import row_service_pb2

ORIGIN: Final = "x-regiongate-origin"
PURPOSE: Final = "x-regiongate-purpose"
TRACEPARENT: Final = "traceparent"

_FIRST_REST: Final = 0.1
_MAX_REST: Final = 2.0

_MAX_RECEIVE_BYTES: Final = 64 << 20

_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # By default a channel whose gateway was away for a while tries again only after up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Clients in one process must not share a connection: each has its own failures.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", _MAX_RECEIVE_BYTES),
    # Retries are ours: with the same request_id, and elsewhere.
    ("grpc.enable_retries", 0),
)


class Endpoint:
    """A gateway, as one client sees it."""

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self.address = address
        self._channel = _open_channel(address, tls)
        # The generated classes serve both kinds of channels; the aio types are in stubs of their own.
        self.rows = cast("row_service_pb2_grpc.RowServiceAsyncStub", row_service_pb2_grpc.RowServiceStub(self._channel))
        self.routing = cast(
            "routing_service_pb2_grpc.RoutingServiceAsyncStub",
            routing_service_pb2_grpc.RoutingServiceStub(self._channel),
        )
        self._failures = 0
        self._rests_until = 0.0

    @property
    def is_up(self) -> bool:
        """Whether it may be tried: it has not failed lately, or has rested since."""
        return self._failures == 0 or monotonic() >= self._rests_until

    @property
    def rests_until(self) -> float:
        """On the monotonic clock."""
        return self._rests_until

    def fail(self) -> None:
        """Notes that it did not answer; it rests longer each time."""
        rest = min(_FIRST_REST * 2**self._failures, _MAX_REST)
        self._failures = min(self._failures + 1, 16)
        self._rests_until = monotonic() + uniform(rest / 2, rest)  # noqa: S311 (spreading, not secrecy)

    def succeed(self) -> None:
        """Notes that it has answered."""
        self._failures = 0

    def exchange(
        self, origin: str
    ) -> grpc.aio.StreamStreamCall[row_service_pb2.ExchangeRequest, row_service_pb2.ExchangeResponse]:
        """Opens a stream of operations."""
        return self.rows.Exchange(metadata=((ORIGIN, origin),) if origin else None)

    async def close(self, grace: float | None = None) -> None:
        """Closes the channel; calls on it have so many seconds to end."""
        await self._channel.close(grace)


def _open_channel(address: str, tls: TlsFiles | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    files = (tls.ca_file, tls.key_file, tls.cert_file)
    ca, key, cert = (path.read_bytes() if path else None for path in files)
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", tls.server_name)) if tls.server_name else _OPTIONS
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options=options)
