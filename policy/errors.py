"""Every error that regiongate raises for a caller, in one tree.

RegiongateError
├── InvalidInput                 the request itself is wrong
│   ├── UnknownRegion            no residency rule covers the RegionCode
│   ├── UnknownDataset
│   ├── UnknownColumn
│   ├── InvalidValue             a value, key or tag that is missing, malformed or of the wrong type
│   ├── UnknownIdc               the policy has no IDC of this name
│   ├── UnknownShard             the RegionCode has no shard of this number
│   ├── InvalidPageToken
│   ├── InvalidJob               a job's definition that breaks a rule
│   │   └── JobConflict          two jobs of one name that are not the same
│   └── PolicyRejected           a policy document, with all its findings
├── RowNotFound
├── RowExists                    a row of this key lives where another one should go
├── RevisionNotFound             a policy revision or rollout that does not exist
├── UnknownJob                   no job of this name was ever run there
├── AccessDenied                 a residency or access rule says no
├── NotOwnedHere                 the owner is elsewhere, and named
├── IllegalMove                  a step that a move or rollout does not allow where it stands
│   ├── SchemaDiffers            source and target do not have the same columns
│   └── DigestMismatch           source and target do not have the same rows
├── NoPolicy                     nothing has been applied yet
├── Conflict                     read again, decide again
│   ├── StaleEpoch
│   ├── StaleAttempt             a step of a move that has been called off
│   ├── ClaimLost                a shard that another runner has taken, or that has left
│   ├── PlanChanged              applying would do something else than the plan that was saved
│   ├── RevisionConflict
│   └── VersionConflict
├── Unavailable                  waiting helps
│   ├── ShardUnavailable         draining, opening or just moved
│   ├── RowMoving                the row is on its way to another RegionCode
│   ├── TableTooOld              the gateway cannot know the current law
│   ├── PeerUnreachable
│   ├── DatabaseUnavailable
│   └── StoreUnavailable         etcd
├── LimitReached
└── DeadlineExceeded
    └── PolicyNotEffective       stored, but some gateway has not acknowledged it yet

An error carries typed fields, a stable UPPER_SNAKE `reason` and no status code: `gateway.status` maps the tree to
gRPC. Messages and fields name rules, regions, shards, columns and limits, never a key or a value of a row (law L1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from policy.findings import Finding


@dataclass(eq=False)
class RegiongateError(Exception):
    """Anything that regiongate tells a caller has gone wrong."""

    reason: ClassVar[str] = "INTERNAL"

    wire: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that travel, besides the message."""

    message: str

    def __str__(self) -> str:
        return self.message

    @property
    def metadata(self) -> dict[str, str]:
        """The travelling fields as strings, for `google.rpc.ErrorInfo`; a tuple is a comma list."""
        return {name: _to_wire(getattr(self, name)) for name in self.wire if getattr(self, name)}


def _to_wire(value: object) -> str:
    return ",".join(cast("tuple[str, ...]", value)) if isinstance(value, tuple) else str(value)


def error_from_wire(reason: str, message: str, metadata: Mapping[str, str]) -> RegiongateError:
    """Builds the error that a peer raised, from its `ErrorInfo`; an unknown reason gives a bare `RegiongateError`."""
    kind = ERRORS_BY_REASON.get(reason, RegiongateError)
    error = kind(message)
    for name in kind.wire:
        if name in metadata:
            default: object = getattr(error, name)
            text = metadata[name]
            value = int(text) if isinstance(default, int) else tuple(text.split(",")) if default == () else text
            setattr(error, name, value)
    return error


@dataclass(eq=False)
class InvalidInput(RegiongateError):
    """The request breaks a rule of the interface."""

    reason: ClassVar[str] = "INVALID_INPUT"
    wire: ClassVar[tuple[str, ...]] = ("field_name",)

    field_name: str = ""
    """The field of the request, as in the proto."""


@dataclass(eq=False)
class UnknownRegion(InvalidInput):
    """No residency rule covers the RegionCode, so the row has no lawful home."""

    reason: ClassVar[str] = "UNKNOWN_REGION"


@dataclass(eq=False)
class UnknownDataset(InvalidInput):
    """The policy has no dataset of this name."""

    reason: ClassVar[str] = "UNKNOWN_DATASET"


@dataclass(eq=False)
class UnknownColumn(InvalidInput):
    """The dataset has no column of this name."""

    reason: ClassVar[str] = "UNKNOWN_COLUMN"


@dataclass(eq=False)
class InvalidValue(InvalidInput):
    """A key, tag or value is missing, malformed, out of range or of the wrong type."""

    reason: ClassVar[str] = "INVALID_VALUE"


@dataclass(eq=False)
class UnknownIdc(InvalidInput):
    """The policy has no IDC of this name."""

    reason: ClassVar[str] = "UNKNOWN_IDC"


@dataclass(eq=False)
class UnknownShard(InvalidInput):
    """The RegionCode has no shard of this number."""

    reason: ClassVar[str] = "UNKNOWN_SHARD"


@dataclass(eq=False)
class InvalidPageToken(InvalidInput):
    """The page token was not made for this request."""

    reason: ClassVar[str] = "INVALID_PAGE_TOKEN"


@dataclass(eq=False)
class InvalidJob(InvalidInput):
    """A job's definition breaks a rule; `field_name` is the argument of `regiongate.job`."""

    reason: ClassVar[str] = "INVALID_JOB"


@dataclass(eq=False)
class JobConflict(InvalidJob):
    """Two jobs have one name and are not the same."""

    reason: ClassVar[str] = "JOB_CONFLICT"


@dataclass(eq=False)
class PolicyRejected(InvalidInput):
    """The policy document does not stand; every finding is here."""

    reason: ClassVar[str] = "POLICY_REJECTED"

    findings: tuple[Finding, ...] = ()


@dataclass(eq=False)
class RowNotFound(RegiongateError):
    """The row does not exist, or has been deleted."""

    reason: ClassVar[str] = "ROW_NOT_FOUND"


@dataclass(eq=False)
class RowExists(RegiongateError):
    """A row of this key lives where another one should go."""

    reason: ClassVar[str] = "ROW_EXISTS"


@dataclass(eq=False)
class RevisionNotFound(RegiongateError):
    """No policy revision or rollout has this number."""

    reason: ClassVar[str] = "REVISION_NOT_FOUND"


@dataclass(eq=False)
class UnknownJob(RegiongateError):
    """No job of this name was ever run in the IDCs asked."""

    reason: ClassVar[str] = "UNKNOWN_JOB"


@dataclass(eq=False)
class AccessDenied(RegiongateError):
    """A residency or access rule forbids it."""

    reason: ClassVar[str] = "ACCESS_DENIED"
    wire: ClassVar[tuple[str, ...]] = ("rule", "policy_revision")

    rule: str = ""
    policy_revision: int = 0


@dataclass(eq=False)
class NotOwnedHere(RegiongateError):
    """The shard belongs to another IDC, and the request may not be carried there."""

    reason: ClassVar[str] = "NOT_OWNED_HERE"
    wire: ClassVar[tuple[str, ...]] = ("owner_idc", "endpoints")

    owner_idc: str = ""
    endpoints: tuple[str, ...] = ()


@dataclass(eq=False)
class IllegalMove(RegiongateError):
    """The move, or the rollout, does not allow this step where it stands."""

    reason: ClassVar[str] = "ILLEGAL_MOVE"


@dataclass(eq=False)
class SchemaDiffers(IllegalMove):
    """Source and target of a move do not have the same columns; nothing was copied."""

    reason: ClassVar[str] = "SCHEMA_DIFFERS"


@dataclass(eq=False)
class DigestMismatch(IllegalMove):
    """Source and target of a move do not have the same rows; nothing was deleted."""

    reason: ClassVar[str] = "DIGEST_MISMATCH"


@dataclass(eq=False)
class NoPolicy(RegiongateError):
    """No policy has been applied to this cluster yet."""

    reason: ClassVar[str] = "NO_POLICY"


@dataclass(eq=False)
class Conflict(RegiongateError):
    """Something changed since the caller looked."""

    reason: ClassVar[str] = "CONFLICT"


@dataclass(eq=False)
class StaleEpoch(Conflict):
    """The shard's fence is at another epoch than the request."""

    reason: ClassVar[str] = "STALE_EPOCH"


@dataclass(eq=False)
class StaleAttempt(Conflict):
    """A step of an attempt to move a shard that has been called off, or that the fence does not allow; no change."""

    reason: ClassVar[str] = "STALE_ATTEMPT"


@dataclass(eq=False)
class ClaimLost(Conflict):
    """Another runner has taken the shard, or it has left this IDC: what the batch did is rolled back (law L5)."""

    reason: ClassVar[str] = "CLAIM_LOST"


@dataclass(eq=False)
class PlanChanged(Conflict):
    """Applying would do something else than the plan that was saved."""

    reason: ClassVar[str] = "PLAN_CHANGED"


@dataclass(eq=False)
class RevisionConflict(Conflict):
    """Another policy revision became current first."""

    reason: ClassVar[str] = "REVISION_CONFLICT"
    wire: ClassVar[tuple[str, ...]] = ("parent", "current")

    parent: int = 0
    current: int = 0


@dataclass(eq=False)
class VersionConflict(Conflict):
    """The row does not have the version that the write demands."""

    reason: ClassVar[str] = "VERSION_CONFLICT"
    wire: ClassVar[tuple[str, ...]] = ("current",)

    current: int = 0
    """The row's version; 0 when it does not exist."""


@dataclass(eq=False)
class Unavailable(RegiongateError):
    """It cannot be done now; a retry may find it possible."""

    reason: ClassVar[str] = "UNAVAILABLE"

    retry_after: timedelta = field(default=timedelta(milliseconds=200))


@dataclass(eq=False)
class ShardUnavailable(Unavailable):
    """The shard is opening, draining or on the move, and the wait for it was too long."""

    reason: ClassVar[str] = "SHARD_UNAVAILABLE"


@dataclass(eq=False)
class RowMoving(Unavailable):
    """The row is on its way to another RegionCode, and the wait for it was too long."""

    reason: ClassVar[str] = "ROW_MOVING"


@dataclass(eq=False)
class TableTooOld(Unavailable):
    """The gateway has lost touch with the policy store and may not judge border crossings (law L6)."""

    reason: ClassVar[str] = "TABLE_TOO_OLD"


@dataclass(eq=False)
class PeerUnreachable(Unavailable):
    """No gateway of the owning IDC answers."""

    reason: ClassVar[str] = "PEER_UNREACHABLE"


@dataclass(eq=False)
class DatabaseUnavailable(Unavailable):
    """The owning IDC's database does not answer."""

    reason: ClassVar[str] = "DATABASE_UNAVAILABLE"


@dataclass(eq=False)
class StoreUnavailable(Unavailable):
    """The policy store (etcd) does not answer."""

    reason: ClassVar[str] = "STORE_UNAVAILABLE"


@dataclass(eq=False)
class LimitReached(RegiongateError):
    """A limit on size, number or rate."""

    reason: ClassVar[str] = "LIMIT_REACHED"
    wire: ClassVar[tuple[str, ...]] = ("limit",)

    limit: str = ""


@dataclass(eq=False)
class DeadlineExceeded(RegiongateError):
    """The caller's deadline passed first."""

    reason: ClassVar[str] = "DEADLINE_EXCEEDED"


@dataclass(eq=False)
class PolicyNotEffective(DeadlineExceeded):
    """The policy revision is stored and will take effect, but some gateways have not acknowledged it in time."""

    reason: ClassVar[str] = "POLICY_NOT_EFFECTIVE"
    wire: ClassVar[tuple[str, ...]] = ("policy_revision", "waiting_for")

    policy_revision: int = 0
    waiting_for: tuple[str, ...] = ()


def _subclasses(kind: type[RegiongateError]) -> Iterator[type[RegiongateError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


ERRORS_BY_REASON: Mapping[str, type[RegiongateError]] = {kind.reason: kind for kind in _subclasses(RegiongateError)}
"""Every error class by its reason."""
