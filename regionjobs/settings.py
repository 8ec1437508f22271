"""Settings of a job runner."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path  # noqa: TC003 (pydantic reads the annotations)
from typing import Self

from pydantic import Field, SecretStr, model_validator

from runtime.config import CommaList, EtcdOptions, Seconds, Settings, TelemetryOptions


# pydantic's two kinds of base class declare `model_config` as two types; it merges them.
class RunnerSettings(Settings, EtcdOptions, TelemetryOptions):  # pyright: ignore[reportIncompatibleVariableOverride]
    """One job runner."""

    idc: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$", description="Name of the IDC whose rows this runner handles.")
    runner: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9.-]{0,60})?$",
        description="Name of this runner, for people; made up when empty.",
    )
    jobs: CommaList = Field(default=(), description="Only these jobs of the modules, by comma; all when empty.")
    database_url: SecretStr = Field(description="The IDC's PostgreSQL, postgresql://user:password@host:port/name.")
    database_connections: int = Field(
        default=8, ge=1, le=200, description="Connections for claims and pages; batches have their own."
    )
    batch_connections: int = Field(
        default=16, ge=1, le=200, description="Connections for batches: so many run at once, of all jobs."
    )
    gateway: CommaList = Field(
        default=(),
        description="Gateways for `batch.client`, host:port, by comma; those of the IDC that etcd knows when empty.",
    )
    gateway_ca_file: Path | None = Field(
        default=None, description="CA certificates that the gateways' are checked against: speak TLS with them."
    )
    gateway_cert_file: Path | None = Field(default=None, description="Client certificate shown to gateways.")
    gateway_key_file: Path | None = Field(default=None, description="Its private key.")
    lease_ttl: Seconds = Field(
        default=timedelta(seconds=3),
        ge=timedelta(seconds=1),
        le=timedelta(minutes=5),
        description="Seconds after which a runner that is not heard of counts as gone.",
    )
    drain_timeout: Seconds = Field(
        default=timedelta(seconds=10), description="Seconds that batches at work have to finish after SIGTERM."
    )

    @model_validator(mode="after")
    def _check_pair(self) -> Self:
        if (self.gateway_cert_file is None) != (self.gateway_key_file is None):
            raise ValueError("gateway_cert_file and gateway_key_file go together")
        if self.gateway_cert_file is not None and self.gateway_ca_file is None:
            raise ValueError("gateway_cert_file needs gateway_ca_file")
        return self
