"""What can go wrong with one attempt, and whether another attempt may mend it.

An attempt fails with `Failed`, which holds the error for the caller and how long the gateway asks to wait. Every
write carries a request_id, so an attempt whose fate is unknown may be made again: the second one returns the first
one's result (laws L3, L4).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import uniform
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from policy.errors import (
    AccessDenied,
    DeadlineExceeded,
    InvalidInput,
    LimitReached,
    NotOwnedHere,
    PeerUnreachable,
    RegiongateError,
    StaleEpoch,
    Unavailable,
    error_from_wire,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from regiongate.v1 import types_pb2

_T = TypeVar("_T")

_FIRST_DELAY: Final = 0.02
_MAX_DELAY: Final = 1.0
_FREE_REDIRECTS: Final = 2
"""Gateways whose tables differ for a moment could send a call to and fro without end."""

_BROKEN_OFF: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
"""Without details, these are the transport's words for a connection that broke: a gateway explains its own INTERNAL."""

_BY_STATUS: Final[Mapping[grpc.StatusCode, type[RegiongateError]]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitReached,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.UNIMPLEMENTED: InvalidInput,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
}
"""What a status means that comes without details: from grpc itself, or something in between."""

_FULL_ANSWER: Final = "answer_bytes"
_LOAD_LIMITS: Final = frozenset({"max_operations", "max_streams", "peer_operations", _FULL_ANSWER})
"""Limits that are met by chance, and may not be met a moment later; a row that is too large stays so."""

_DETAILS: Final = "grpc-status-details-bin"


class Failed(Exception):
    """One attempt failed."""

    def __init__(self, error: RegiongateError, retry_after: float = 0.0) -> None:
        super().__init__(error.reason)
        self.error = error
        self.retry_after = retry_after
        """Seconds that the gateway asks to wait; 0 when it does not say."""

    @property
    def is_transport(self) -> bool:
        """Whether it is about the gateway that was asked, so that another one is worth trying at once."""
        if isinstance(self.error, PeerUnreachable):
            # A gateway that could not reach another one says how long to wait.
            return not self.retry_after
        return type(self.error) is Unavailable


def failed_operation(error: types_pb2.Error) -> Failed:
    """The failure of one operation among many."""
    return _failed(error.reason, error.message, dict(error.metadata), error.retry_after_ms / 1000)


def failed_call(error: grpc.aio.AioRpcError, address: str) -> Failed:
    """The failure of a whole call or stream, from its status and the details that came with it."""
    info, retry_after = _read_details(error)
    if info is not None:
        return _failed(info.reason, error.details() or "", dict(info.metadata), retry_after)
    text = error.details() or error.code().name
    code = error.code()
    if code in _BROKEN_OFF:
        return unreachable(address, text)
    return Failed(_BY_STATUS.get(code, RegiongateError)(text))


def unreachable(address: str, text: str) -> Failed:
    """The gateway at the address could not be reached, or broke off."""
    return Failed(PeerUnreachable(f"gateway {address}: {text}"))


def closed() -> Failed:
    """The client was closed: nothing will help."""
    return Failed(RegiongateError("the client is closed"))


def _failed(reason: str, message: str, metadata: dict[str, str], retry_after: float) -> Failed:
    error = error_from_wire(reason, message, metadata)
    if isinstance(error, Unavailable) and retry_after:
        error.retry_after = timedelta(seconds=retry_after)
    return Failed(error, retry_after)


def _read_details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo | None, float]:
    info, retry_after = None, 0.0
    for name, value in error.trailing_metadata() or ():
        if name != _DETAILS or not isinstance(value, bytes):
            continue
        try:
            details = status_pb2.Status.FromString(value).details
        except DecodeError:
            continue
        for detail in details:
            found, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(found):
                info = found
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return info, retry_after


def can_retry(failed: Failed) -> bool:
    """Whether another attempt may succeed where this one failed."""
    match failed.error:
        case NotOwnedHere() | Unavailable() | StaleEpoch() | DeadlineExceeded():
            return True
        case LimitReached(limit=limit):
            return limit in _LOAD_LIMITS
        case _:
            return False


class Backoff:
    """How long to wait before each further attempt of one call."""

    def __init__(self) -> None:
        self._delay = _FIRST_DELAY
        self._redirects = 0

    def after(self, failed: Failed) -> float | None:
        """Seconds to wait after a failure; None when another attempt cannot help."""
        if not can_retry(failed):
            return None
        if isinstance(failed.error, NotOwnedHere):
            self._redirects += 1
            if self._redirects <= _FREE_REDIRECTS:
                return 0.0
        if isinstance(failed.error, LimitReached) and failed.error.limit == _FULL_ANSWER:
            # Each answer brings more of the rows: there is nothing to wait for.
            return _FIRST_DELAY
        delay = self._delay if failed.is_transport else max(self._delay, failed.retry_after)
        self._delay = min(self._delay * 2, _MAX_DELAY)
        return uniform(delay / 2, delay)  # noqa: S311 (spreading, not secrecy)


async def persist(
    attempt: Callable[[float], Awaitable[_T]],
    deadline: float,
    attempt_timeout: float,
    failed: Failed | None = None,
) -> _T:
    """Makes attempts until one succeeds, fails for good, or there is no time for another.

    Args:
        attempt: Makes one, until the deadline that it is given; raises `Failed`.
        deadline: Of them all, on the loop's clock.
        attempt_timeout: Seconds for each.
        failed: The failure of an attempt that the caller has made already.

    Raises:
        RegiongateError: What the last attempt failed with.
    """
    now = asyncio.get_running_loop().time
    backoff = Backoff()
    while True:
        if failed is not None:
            delay = backoff.after(failed)
            if delay is None or now() + delay >= deadline:
                raise failed.error from None
            await asyncio.sleep(delay)
        try:
            return await attempt(min(deadline, now() + attempt_timeout))
        except Failed as failure:
            failed = failure
