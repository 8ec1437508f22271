"""Settings: every process reads flags and `REGIONGATE_*` variables into one frozen, validated object.

A settings class is put together from the option groups below and its own fields. Field names are flat, so that
`etcd_endpoints` is `--etcd-endpoints` on the command line and `REGIONGATE_ETCD_ENDPOINTS` in the environment. Every
field has a description, which is its help text. Secrets are `SecretStr`; a rejected value is never echoed.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path  # noqa: TC003 (pydantic reads the annotations)
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

if TYPE_CHECKING:
    from runtime.etcd import EtcdSettings

ENV_PREFIX = "REGIONGATE_"


def split_commas(value: object) -> object:
    """Splits `a,b` into a tuple; anything but a string passes unchanged."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
"""A tuple of strings, written `a,b,c` in flags and variables."""


def _seconds(value: object) -> object:
    """Reads a plain number, also as text, as seconds."""
    if isinstance(value, str) and value.replace(".", "", 1).isdecimal():
        return timedelta(seconds=float(value))
    return value


Seconds = Annotated[timedelta, BeforeValidator(_seconds)]
"""A duration, written as a number of seconds or in ISO 8601."""

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose."""


class Settings(BaseSettings):
    """Base of every process's settings."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)


class EtcdOptions(BaseModel):
    """How to reach the policy store."""

    cluster: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="Name of the cluster.")
    etcd_endpoints: CommaList = Field(
        default=("127.0.0.1:2379",), min_length=1, description="etcd members, host:port or https://host:port, by comma."
    )
    etcd_ca_file: Path | None = Field(default=None, description="CA certificates that etcd's are checked against.")
    etcd_cert_file: Path | None = Field(default=None, description="Client certificate shown to etcd.")
    etcd_key_file: Path | None = Field(default=None, description="Private key of the client certificate.")
    etcd_username: str = Field(default="", description="etcd user; empty without authentication.")
    etcd_password: SecretStr = Field(default=SecretStr(""), description="Password of the etcd user.")

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.etcd_cert_file is None) != (self.etcd_key_file is None):
            raise ValueError("etcd_cert_file and etcd_key_file go together")
        return self

    def etcd_settings(self) -> EtcdSettings:
        """These options as the etcd client takes them."""
        from runtime.etcd import EtcdSettings  # noqa: PLC0415 (keeps grpc out of processes that only read settings)

        return EtcdSettings(
            endpoints=self.etcd_endpoints,
            ca_file=self.etcd_ca_file,
            cert_file=self.etcd_cert_file,
            key_file=self.etcd_key_file,
            username=self.etcd_username,
            password=self.etcd_password,
        )


class PeerTlsOptions(BaseModel):
    """Mutual TLS between IDCs: all three files, or none for plaintext."""

    peer_cert_file: Path | None = Field(
        default=None, description="Certificate shown to other IDCs; its URI SAN names this IDC."
    )
    peer_key_file: Path | None = Field(default=None, description="Private key of the peer certificate.")
    peer_ca_file: Path | None = Field(default=None, description="CA certificates that peers' are checked against.")

    @property
    def has_peer_tls(self) -> bool:
        """Whether IDCs speak TLS with each other."""
        return self.peer_cert_file is not None

    @model_validator(mode="after")
    def _check_peer_files(self) -> Self:
        files = (self.peer_cert_file, self.peer_key_file, self.peer_ca_file)
        if any(files) and not all(files):
            raise ValueError("peer_cert_file, peer_key_file and peer_ca_file go together")
        return self


class TlsOptions(PeerTlsOptions):
    """TLS of a gateway's two listeners; without it they may only listen on loopback."""

    tls_cert_file: Path | None = Field(default=None, description="Certificate of the client listener.")
    tls_key_file: Path | None = Field(default=None, description="Private key of the client listener.")
    tls_client_ca_file: Path | None = Field(
        default=None, description="Clients must show a certificate of these CAs (mutual TLS)."
    )
    insecure_listen: bool = Field(
        default=False, description="Allow plaintext on other addresses than loopback. Rows then travel unencrypted."
    )

    @property
    def has_tls(self) -> bool:
        """Whether the client listener speaks TLS."""
        return self.tls_cert_file is not None

    @model_validator(mode="after")
    def _check_listener_files(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        return self


class TelemetryOptions(BaseModel):
    """Traces, logs and metrics of a process."""

    trace_sample_ratio: float = Field(
        default=0.01, ge=0, le=1, description="Share of the calls without a trace of their own that are traced."
    )
    trace_directory: Path | None = Field(
        default=None, description="Folder for spans as JSON lines, unless OTEL_* variables name a collector."
    )
    log_format: Literal["json", "console"] = Field(default="json", description="json, or console for people.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")
    metrics_host: str = Field(default="127.0.0.1", description="Address of /metrics, /healthz and /readyz.")
    metrics_port: Port = Field(default=9464, description="Port of /metrics, /healthz and /readyz; 0: any.")
