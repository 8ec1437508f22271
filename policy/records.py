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
class Leftover(Record):
    """Rows of a shard that lie in an IDC which does not own it (any more), and are to be deleted there."""

    idc: str
    epoch: int
    """Of the owner when the move began."""
    attempt: int
    rollout: str = ""
    rows: int = 0
    digest: str = ""
    """What the new owner has opened with; empty for the remains of an attempt that was called off."""


@dataclass(frozen=True, slots=True)
class ShardRecord(Record):
    """`shards/<region>/<number>`: who owns a shard, and where it is on its way to another owner."""

    owner: str
    epoch: int
    phase: str
    policy_revision: int
    target: str = ""
    """Who shall own it; empty when it is not being moved, and after the switch."""
    rollout: str = ""
    traceparent: str = ""
    attempt: int = 0
    """Goes up with each try to move the shard, and when one is called off; never goes back."""
    leftovers: tuple[Leftover, ...] = ()

    def __post_init__(self) -> None:
        """JSON knows neither tuples nor our records."""
        items = (item if isinstance(item, Leftover) else Leftover(**item) for item in self.leftovers)
        object.__setattr__(self, "leftovers", tuple(items))


@dataclass(frozen=True, slots=True)
class RolloutRecord(Record):
    """`rollouts/<id>`: what one policy revision, or one order of an operator, set in motion."""

    rollout: str
    policy_revision: int
    state: str
    """running | paused | cancelling | done | cancelled | superseded"""
    create_time: str
    shards_total: int = 0
    shards_done: int = 0
    end_time: str = ""
    note: str = ""
    traceparent: str = ""
    kind: str = "policy"
    """policy | move | drain"""
    author: str = ""
    message: str = ""

    @property
    def is_ended(self) -> bool:
        """Whether nothing will change it any more."""
        return self.state in ENDED_STATES

    def wants(self, *, required_by_law: bool) -> bool:
        """Whether it still wants a move of its plan; what the law demands it wants while it is being cancelled, too."""
        return not self.is_ended and (self.state != "cancelling" or required_by_law)


ENDED_STATES = frozenset({"done", "cancelled", "superseded"})


@dataclass(frozen=True, slots=True)
class PlannedMove(Record):
    """One shard that a rollout moves."""

    region_code: str
    shard: int
    source: str
    target: str
    required_by_law: bool = False


@dataclass(frozen=True, slots=True)
class PlanRecord(Record):
    """`plans/<rollout>`: every move of a rollout, decided when it was made; never changed."""

    rollout: str
    moves: tuple[PlannedMove, ...] = ()

    def encode(self) -> bytes:
        """The moves as bare lists: a plan of many thousands fits into one value."""
        moves = [[m.region_code, m.shard, m.source, m.target, int(m.required_by_law)] for m in self.moves]
        return json.dumps({"rollout": self.rollout, "moves": moves}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Reads a plan; raises `ValueError` when it is not one."""
        try:
            data = cast("dict[str, Any]", json.loads(value))
            moves = (PlannedMove(code, int(n), src, to, bool(law)) for code, n, src, to, law in data["moves"])
            return cls(data["rollout"], tuple(moves))
        except (TypeError, KeyError) as error:
            raise ValueError("not a PlanRecord") from error


@dataclass(frozen=True, slots=True)
class MoveRecord(Record):
    """`moves/<rollout>/<region>/<number>`: how far one shard's move has come, and how it ended."""

    rollout: str
    region_code: str
    shard: int
    source: str
    target: str
    phase: str
    """waiting | a phase of the shard | done | called off"""
    attempt: int = 0
    rows: int = 0
    bytes: int = 0
    rows_per_second: float = 0.0
    remaining: int = 0
    stall_ms: float = 0.0
    digest: str = ""
    note: str = ""
    start_time: str = ""
    drain_time: str = ""
    switch_time: str = ""
    end_time: str = ""
    required_by_law: bool = False


@dataclass(frozen=True, slots=True)
class SwitchRecord(Record):
    """`last_switch`: the newest change of an owner; who plans by the owners compares with it."""

    region_code: str
    shard: int
    epoch: int


@dataclass(frozen=True, slots=True)
class OrderRecord(Record):
    """`last_order`: the newest order of an operator; every order puts it, and who plans compares with it."""

    number: int
    """Goes up by one with each; the rollouts of orders have their number from here."""
    what: str = ""
    create_time: str = ""


@dataclass(frozen=True, slots=True)
class DrainRecord(Record):
    """`drained/<idc>`: this IDC is to be emptied, and assigned nothing."""

    idc: str
    author: str
    message: str
    create_time: str


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


@dataclass(frozen=True, slots=True)
class RunnerRecord(Record):
    """`runners/<idc>/<id>`, leased: a live job runner, and what it runs."""

    runner: str
    """The last part of its key: no two processes share one, whatever they are called."""
    idc: str
    jobs: tuple[str, ...] = ()
    """Names of the jobs that it runs, sorted."""
    metrics: str = ""
    """Base URL of its /metrics, /healthz and /readyz."""
    session: str = ""
    """`application_name` of its batches' connections: whoever sees it gone ends them, and the locks that they hold."""

    def __post_init__(self) -> None:
        """JSON knows no tuples."""
        object.__setattr__(self, "jobs", tuple(self.jobs))


class Keys:
    """Names of the keys of one cluster, below `/regiongate/<cluster>/`."""

    def __init__(self, cluster: str = "default") -> None:
        self.root = f"/regiongate/{cluster}/"
        self.policy = f"{self.root}policy/"
        self.policy_current = f"{self.policy}current"
        self.policy_revisions = f"{self.policy}revisions/"
        self.shards = f"{self.root}shards/"
        self.rollouts = f"{self.root}rollouts/"
        self.plans = f"{self.root}plans/"
        self.moves = f"{self.root}moves/"
        self.drained = f"{self.root}drained/"
        self.last_switch = f"{self.root}last_switch"
        self.last_order = f"{self.root}last_order"
        self.audit = f"{self.root}audit/"
        self.audit_entries = f"{self.audit}entries/"
        self.audit_head = f"{self.audit}head"
        self.gateways = f"{self.root}gateways/"
        self.runners = f"{self.root}runners/"
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

    def plan(self, rollout: str) -> str:
        """Key of one rollout's plan."""
        return f"{self.plans}{rollout}"

    def moves_of(self, rollout: str) -> str:
        """Prefix of the moves of one rollout."""
        return f"{self.moves}{rollout}/"

    def move(self, rollout: str, region_code: str, shard: int) -> str:
        """Key of one move."""
        return f"{self.moves_of(rollout)}{region_code}/{shard:05d}"

    def drain(self, idc: str) -> str:
        """Key of the order to empty an IDC."""
        return f"{self.drained}{idc}"

    def audit_entry(self, number: int) -> str:
        """Key of one link of the audit trail."""
        return f"{self.audit_entries}{number:012d}"

    def gateway(self, idc: str, gateway: str) -> str:
        """Key of one gateway."""
        return f"{self.gateways}{idc}/{gateway}"

    def runners_of(self, idc: str) -> str:
        """Prefix of the job runners of an IDC."""
        return f"{self.runners}{idc}/"

    def runner(self, idc: str, runner: str) -> str:
        """Key of one job runner."""
        return f"{self.runners_of(idc)}{runner}"

    def parse_shard(self, key: str) -> tuple[str, int]:
        """RegionCode and number of a shard's key; raises `ValueError` when it is not one."""
        region_code, _, number = key.removeprefix(self.shards).rpartition("/")
        return region_code, int(number)


def plain(record: Record) -> Mapping[str, Any]:
    """The record as plain data, for printing."""
    return asdict(record)
