"""What can go wrong between us and etcd.

EtcdError
├── EtcdUnavailable          no member answered, or the cluster has no quorum; waiting helps
│   └── EtcdDeadline         nothing came back in time
├── EtcdCompacted            the history asked for is gone: list again
├── EtcdWatchCancelled       the server ended a watch and will end it again
├── EtcdLeaseLost            a lease ended before what it was for
├── EtcdDenied               authentication or permission
└── EtcdRejected             the request itself was refused
    └── EtcdTooLarge         the request or its answer is over a size limit

Messages name keys at most, never values.
"""

from __future__ import annotations

from grpc import StatusCode

_NEVER_APPLIED = ("etcdserver: no leader", "etcdserver: too many requests", "failed to connect to all addresses")
"""Answers that prove that the request did not reach the replicated log."""

_DENIED = (
    "etcdserver: permission denied",
    "etcdserver: authentication failed",
    "etcdserver: user name is empty",
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
)
STALE_TOKEN = _DENIED[2:]
"""Answers after which a new token may help; etcd gives them before it applies anything."""

_TRANSPORT_CODES = frozenset(
    {
        StatusCode.UNAVAILABLE,
        StatusCode.CANCELLED,
        StatusCode.INTERNAL,
        StatusCode.UNKNOWN,
        StatusCode.ABORTED,
    }
)


class EtcdError(Exception):
    """Anything that etcd or the way to it did wrong."""


class EtcdUnavailable(EtcdError):
    """No member answered, or the cluster has no quorum."""

    def __init__(self, message: str, *, may_have_applied: bool = True) -> None:
        super().__init__(message)
        self.may_have_applied = may_have_applied
        """False when the request certainly had, and will have, no effect; a true one may even take effect later."""


class EtcdDeadline(EtcdUnavailable):
    """Nothing came back in time."""


class EtcdCompacted(EtcdError):
    """The history from the revision that was asked for is gone; list again and go on from there."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"etcd has compacted its history up to revision {compact_revision}")
        self.compact_revision = compact_revision
        """The oldest revision that can still be watched, 0 when the server did not say."""


class EtcdWatchCancelled(EtcdError):
    """The server ended a watch for a reason that opening it again would not change."""

    def __init__(self, cancel_reason: str) -> None:
        super().__init__(f"etcd cancelled a watch: {cancel_reason or 'no reason given'}")
        self.cancel_reason = cancel_reason


class EtcdLeaseLost(EtcdError):
    """The lease ended before what it was held for."""


class EtcdDenied(EtcdError):
    """User, password, certificate or role do not permit it."""


class EtcdRejected(EtcdError):
    """etcd refused the request, and would refuse it again."""


class EtcdTooLarge(EtcdRejected):
    """The request or its answer is larger than a limit."""


def translate(code: StatusCode, details: str, endpoint: str) -> EtcdError:
    """Turns the status of a failed call into an error of this module; the one place that does."""
    message = f"etcd at {endpoint}: {code.name}: {details}"
    if code is StatusCode.DEADLINE_EXCEEDED:
        return EtcdDeadline(message)
    if code in {StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED} or any(text in details for text in _DENIED):
        return EtcdDenied(message)
    was_never_applied = any(text in details for text in _NEVER_APPLIED)
    if was_never_applied or code in _TRANSPORT_CODES:
        return EtcdUnavailable(message, may_have_applied=not was_never_applied)
    if code is StatusCode.OUT_OF_RANGE and "compacted" in details:
        return EtcdCompacted(0)
    if "larger than max" in details or "request is too large" in details:
        return EtcdTooLarge(message)
    return EtcdRejected(message)


def has_stale_token(error: EtcdDenied) -> bool:
    """Whether authenticating again may cure it."""
    return any(text in str(error) for text in STALE_TOKEN)
