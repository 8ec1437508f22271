"""Settings of a gateway process: where it stands, where it listens, what it may hold, and what it reaches.

Limits are settings with a default that suits one process on two cores. Addresses are `host:port`; port 0 lets the
system choose, and what was chosen is what the gateway registers.
"""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from typing import Annotated, NamedTuple, Self

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, model_validator
from pydantic_settings import NoDecode

from runtime.config import EtcdOptions, Seconds, Settings, TelemetryOptions, TlsOptions


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nothing outside this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_any(self) -> bool:
        """Whether it stands for every address of this machine, which nobody can connect to by that name."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104 (recognised, not bound)


def parse_address(text: object) -> object:
    """Reads `host:port` or `[v6]:port`; anything but a string passes unchanged."""
    if not isinstance(text, str):
        return text
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("an address is host:port")
    return Address(host, int(port))


HostPort = Annotated[Address, NoDecode, BeforeValidator(parse_address), PlainSerializer(str)]


# pydantic's two kinds of base class declare `model_config` as two types; it merges them.
class GatewaySettings(Settings, EtcdOptions, TlsOptions, TelemetryOptions):  # pyright: ignore[reportIncompatibleVariableOverride]
    """One gateway."""

    idc: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$", description="Name of the IDC that this gateway stands in.")
    gateway: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9.-]{0,60})?$",
        description="Name of this gateway, unique in its IDC; made up when empty.",
    )
    database_url: SecretStr = Field(description="The IDC's PostgreSQL, postgresql://user:password@host:port/name.")
    database_connections: int = Field(default=8, ge=1, le=200, description="Connections to the database.")
    listen: HostPort = Field(default=Address("127.0.0.1", 7000), description="Where clients connect, host:port.")
    peer_listen: HostPort = Field(
        default=Address("127.0.0.1", 7001), description="Where other gateways and the controller connect, host:port."
    )
    advertise: str = Field(default="", description="host:port that clients are told; the bound address when empty.")
    peer_advertise: str = Field(default="", description="host:port that peers are told; the bound address when empty.")
    lease_ttl: Seconds = Field(
        default=timedelta(seconds=10),
        ge=timedelta(seconds=2),
        le=timedelta(minutes=5),
        description="Seconds after which a gateway that is not heard of counts as gone.",
    )
    default_timeout: Seconds = Field(
        default=timedelta(seconds=10), gt=timedelta(), description="Seconds for a call that states no deadline."
    )
    max_timeout: Seconds = Field(
        default=timedelta(seconds=60), gt=timedelta(), description="Most seconds that any call may take."
    )
    max_operations: int = Field(
        default=20_000, ge=1, description="Operations in flight; more are refused with LIMIT_REACHED."
    )
    max_stream_messages: int = Field(
        default=64, ge=1, description="Messages in work on one Exchange stream; the next ones wait unread."
    )
    max_streams: int = Field(default=2_000, ge=1, description="Exchange and WatchRoutes streams that may be open.")
    hold_timeout: Seconds = Field(
        default=timedelta(seconds=5),
        description="Seconds that an operation may wait for a shard on the move.",
    )
    max_held: int = Field(default=10_000, ge=0, description="Operations that may wait for a shard at a time.")
    audit_interval: Seconds = Field(
        default=timedelta(seconds=60),
        ge=timedelta(seconds=1),
        le=timedelta(hours=1),
        description="Seconds between two entries of the audit trail on border crossings; what a crash loses at most.",
    )
    drain_timeout: Seconds = Field(
        default=timedelta(seconds=10), description="Seconds that calls in flight have to finish after SIGTERM."
    )

    @model_validator(mode="after")
    def _check_plaintext(self) -> Self:
        """Rows travel in plain only inside one machine, or where someone has asked for it in so many words."""
        listeners = (
            ("listen", self.listen, self.has_tls, "tls_cert_file"),
            ("peer_listen", self.peer_listen, self.has_peer_tls, "peer_cert_file"),
        )
        for name, address, is_encrypted, remedy in listeners:
            if not address.is_loopback and not is_encrypted and not self.insecure_listen:
                raise ValueError(f"{name} is not a loopback address: set {remedy}, or insecure_listen for plaintext")
        advertised = (("listen", self.listen, self.advertise), ("peer_listen", self.peer_listen, self.peer_advertise))
        for name, address, told in advertised:
            if address.is_any and not told:
                raise ValueError(f"{name} is every address of this machine: say which one to tell others by advertise")
        if self.default_timeout > self.max_timeout:
            raise ValueError("default_timeout is above max_timeout")
        return self
