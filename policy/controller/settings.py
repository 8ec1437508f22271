"""Settings of a controller process."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from runtime.config import EtcdOptions, PeerTlsOptions, Seconds, Settings, TelemetryOptions


# pydantic's two kinds of base class declare `model_config` as two types; it merges them.
class ControllerSettings(Settings, EtcdOptions, PeerTlsOptions, TelemetryOptions):  # pyright: ignore[reportIncompatibleVariableOverride]
    """One controller; of all that run, the elected one works."""

    controller: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9.-]{0,60})?$",
        description="Name of this controller, for people; made up when empty.",
    )
    lease_ttl: Seconds = Field(
        # Writes of a shard that was being switched wait for it: below the gateways' hold_timeout, with room to spare.
        default=timedelta(seconds=3),
        ge=timedelta(seconds=2),
        le=timedelta(minutes=5),
        description="Seconds after which another controller takes over from one that is not heard of.",
    )
    open_timeout: Seconds = Field(
        default=timedelta(seconds=5), gt=timedelta(), description="Seconds that an IDC has for one step of its fences."
    )
    moves_per_pair: int = Field(default=1, ge=1, le=64, description="Shards that may move between two IDCs at a time.")
    moves_per_idc: int = Field(default=4, ge=1, le=256, description="Moves that an IDC may take part in at a time.")
    stall_limit: Seconds = Field(
        default=timedelta(seconds=3),
        gt=timedelta(),
        le=timedelta(minutes=1),
        description="Seconds that a move may hold writes before it is called off; below the gateways' hold_timeout.",
    )
