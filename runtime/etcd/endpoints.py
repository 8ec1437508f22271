"""One gRPC channel for each etcd member, and which of them to use now.

Members are used in the order given: the preferred one until it fails, then the next. A channel for each member,
instead of gRPC's own balancing, because only a caller's deadline can tell that a member is paused or cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import grpc.aio

if TYPE_CHECKING:
    from runtime.etcd.methods import Method
    from runtime.etcd.types import EtcdSettings

_DEFAULT_PORT = 2379
_OPTIONS = (
    # etcd answers pings more frequent than one in 5 s with GOAWAY too_many_pings, and that kills the watches.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a member listens."""

    address: str
    has_tls: bool


def parse_endpoint(text: str, *, default_tls: bool) -> Endpoint:
    """Reads `host:port` or a URL; raises ValueError with the text that does not fit."""
    parts = urlsplit(text if "://" in text else f"{'https' if default_tls else 'http'}://{text}")
    try:
        host, port = parts.hostname or "", parts.port or _DEFAULT_PORT
    except ValueError:
        host, port = "", 0
    if parts.scheme not in {"http", "https"} or not host or parts.path.strip("/"):
        raise ValueError(f"not an etcd endpoint: {text!r} (want host:port, http://host:port or https://host:port)")
    return Endpoint(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", parts.scheme == "https")


class Endpoints:
    """The members of a cluster, one of them preferred."""

    def __init__(self, settings: EtcdSettings) -> None:
        if not settings.endpoints:
            raise ValueError("no etcd endpoint")
        if (settings.cert_file is None) != (settings.key_file is None):
            raise ValueError("cert_file and key_file go together")
        self._settings = settings
        has_tls = settings.ca_file is not None or settings.cert_file is not None
        self._endpoints = tuple(parse_endpoint(text, default_tls=has_tls) for text in settings.endpoints)
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._callables: dict[tuple[int, str], Any] = {}
        self.preferred = 0

    def __len__(self) -> int:
        return len(self._endpoints)

    def address(self, index: int) -> str:
        """Host and port of a member."""
        return self._endpoints[index].address

    def fail(self, index: int) -> None:
        """Prefers the next member, unless another caller has moved on already."""
        if self.preferred == index:
            self.preferred = (index + 1) % len(self._endpoints)

    def callable(self, index: int, method: Method[Any, Any]) -> Any:  # noqa: ANN401 (grpc's own types are as vague)
        """The method on this member's channel, made on first use."""
        found = self._callables.get((index, method.path))
        if found is None:
            channel = self._channel(index)
            make = channel.stream_stream if method.is_stream else channel.unary_unary
            found = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            self._callables[index, method.path] = found
        return found

    def _channel(self, index: int) -> grpc.aio.Channel:
        channel = self._channels.get(index)
        if channel is None:
            endpoint = self._endpoints[index]
            options = (*_OPTIONS, ("grpc.max_receive_message_length", self._settings.max_message_bytes))
            if endpoint.has_tls:
                channel = grpc.aio.secure_channel(endpoint.address, self._credentials(), options=options)
            else:
                channel = grpc.aio.insecure_channel(endpoint.address, options=options)
            self._channels[index] = channel
        return channel

    def _credentials(self) -> grpc.ChannelCredentials:
        files = (self._settings.ca_file, self._settings.key_file, self._settings.cert_file)
        ca, key, cert = (path.read_bytes() if path else None for path in files)
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)

    async def close(self) -> None:
        """Ends all calls and connections."""
        channels = list(self._channels.values())
        self._channels.clear()
        self._callables.clear()
        for channel in channels:
            await channel.close()
