"""What regiongate keeps in etcd: one record type for each kind of key, as JSON that a person can read.

No record holds a row, a part of one or a key of one (law L1). Readers ignore fields that they do not know, so that an
older process can live beside a newer one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Record:
    """A value under one key of etcd."""

    def encode(self) -> bytes:
        """The record as compact JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Reads a record; raises `ValueError` when it is not one."""
        try:
            data = cast("dict[str, Any]", json.loads(value))
            known = {f.name for f in fields(cls)}
            return cls(**{name: item for name, item in data.items() if name in known})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a {cls.__name__}") from error


@dataclass(frozen=True, slots=True)
class CurrentPolicy(Record):
    """`policy/current`: the revision that everybody decides by."""

    revision: int


@dataclass(frozen=True, slots=True)
class PolicyRevision(Record):
    """`policy/revisions/<n>`: one immutable document."""

    revision: int
    parent: int
    document: str
    author: str
    message: str
    create_time: str
    """RFC 3339, UTC."""
    rollout: str = ""
    rules: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The document as `apply` understood it, as plain data: every process decides by this, and none parses YAML."""


@dataclass(frozen=True, slots=True)
class ShardRecord(Record):
    """`shards/<region>/<number>`: who owns a shard."""

    owner: str
    epoch: int
    phase: str
    policy_revision: int
    target: str = ""
    rollout: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class RolloutRecord(Record):
    """`rollouts/<id>`: what one policy revision set in motion."""

    rollout: str
    policy_revision: int
    state: str
    """running | done"""
    create_time: str
    shards_total: int = 0
    shards_done: int = 0
    end_time: str = ""
    note: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class GatewayRecord(Record):
    """`gateways/<idc>/<id>`, leased: a live gateway, where it listens and what it decides by."""

    gateway: str
    idc: str
    address: str
    """For clients, host:port."""
    peer_address: str
    """For gateways and the controller, host:port."""
    policy_revision: int
    """The revision that it decides by; 0 before the first."""
    schema_revision: int = 0
    """The newest revision whose datasets its IDC's database has."""


class Keys:
    """Names of the keys of one cluster, below `/regiongate/<cluster>/`."""

    def __init__(self, cluster: str = "default") -> None:
        self.root = f"/regiongate/{cluster}/"
        self.policy = f"{self.root}policy/"
        self.policy_current = f"{self.policy}current"
        self.policy_revisions = f"{self.policy}revisions/"
        self.shards = f"{self.root}shards/"
        self.rollouts = f"{self.root}rollouts/"
        self.gateways = f"{self.root}gateways/"
        self.controller_election = f"{self.root}election/controller"

    def policy_revision(self, revision: int) -> str:
        """Key of one revision; padded, so that a listing is in order."""
        return f"{self.policy_revisions}{revision:010d}"

    def shard(self, region_code: str, shard: int) -> str:
        """Key of one shard."""
        return f"{self.shards}{region_code}/{shard:05d}"

    def rollout(self, rollout: str) -> str:
        """Key of one rollout."""
        return f"{self.rollouts}{rollout}"

    def gateway(self, idc: str, gateway: str) -> str:
        """Key of one gateway."""
        return f"{self.gateways}{idc}/{gateway}"

    def parse_shard(self, key: str) -> tuple[str, int]:
        """RegionCode and number of a shard's key; raises `ValueError` when it is not one."""
        region_code, _, number = key.removeprefix(self.shards).rpartition("/")
        return region_code, int(number)


def plain(record: Record) -> Mapping[str, Any]:
    """The record as plain data, for printing."""
    return asdict(record)
