"""The one table from errors to gRPC statuses, and the way there and back.

A failed call carries `google.rpc.Status` with `ErrorInfo` and, where waiting helps, `RetryInfo`; one failed operation
among many carries `regiongate.v1.Error` with the same content. An exception outside the tree of `policy.errors` becomes
INTERNAL with a fixed text: what it says goes to the log only, for it may quote a row (law L1).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from policy.errors import (
    AccessDenied,
    Conflict,
    DeadlineExceeded,
    IllegalMove,
    InvalidInput,
    LimitReached,
    NoPolicy,
    NotOwnedHere,
    PolicyRejected,
    RegiongateError,
    RevisionNotFound,
    RowExists,
    RowNotFound,
    Unavailable,
    UnknownJob,
    error_from_wire,
)
from policy.findings import Finding, Severity
from regiongate.v1 import policy_service_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.message import Message


log = structlog.get_logger("gateway.status")

DOMAIN = "regiongate.dev"
"""`ErrorInfo.domain` of every error."""

INTERNAL_TEXT = "internal error"

STATUS_OF: Mapping[type[RegiongateError], grpc.StatusCode] = {
    RegiongateError: grpc.StatusCode.INTERNAL,
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    RowNotFound: grpc.StatusCode.NOT_FOUND,
    RowExists: grpc.StatusCode.ALREADY_EXISTS,
    RevisionNotFound: grpc.StatusCode.NOT_FOUND,
    UnknownJob: grpc.StatusCode.NOT_FOUND,
    AccessDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotOwnedHere: grpc.StatusCode.FAILED_PRECONDITION,
    IllegalMove: grpc.StatusCode.FAILED_PRECONDITION,
    NoPolicy: grpc.StatusCode.FAILED_PRECONDITION,
    Conflict: grpc.StatusCode.ABORTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    LimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The table; a class that is not in it has the status of its nearest base class."""

_RESOLVED: dict[type[RegiongateError], grpc.StatusCode] = {}

_LOAD_LIMITS = frozenset({"max_operations", "max_streams", "max_held", "peer_operations"})
"""Limits on what is in flight: unlike a limit on size, they pass."""

_LOAD_PAUSE = timedelta(milliseconds=100)

_FINDINGS_BYTES = 4096
"""Findings beside an error travel in the trailers, which HTTP/2 peers bound at 8 KiB by default."""

_BARE_ERRORS: Mapping[grpc.StatusCode, type[RegiongateError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitReached,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.CANCELLED: Unavailable,
}
"""What a status without `ErrorInfo` means: the transport made it, not a gateway."""

_SEVERITIES = {
    Severity.ERROR: policy_service_pb2.SEVERITY_ERROR,
    Severity.WARNING: policy_service_pb2.SEVERITY_WARNING,
    Severity.INFO: policy_service_pb2.SEVERITY_INFO,
}


def status_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status of an error; INTERNAL for anything outside the tree."""
    kind = type(error)
    if not issubclass(kind, RegiongateError):
        return grpc.StatusCode.INTERNAL
    status = _RESOLVED.get(kind)
    if status is None:
        status = next(STATUS_OF[base] for base in kind.__mro__ if base in STATUS_OF)
        _RESOLVED[kind] = status
    return status


def known_error(error: BaseException, *, where: str, traceparent: str = "") -> RegiongateError:
    """The error as it may be told to a caller; an unexpected one is logged, and told as a fixed text."""
    if isinstance(error, RegiongateError) and type(error) is not RegiongateError:
        return error
    log.error("a call failed unexpectedly", where=where, traceparent=traceparent, exc_info=error)
    return RegiongateError(INTERNAL_TEXT)


def to_error_message(error: BaseException, *, where: str = "operation", traceparent: str = "") -> types_pb2.Error:
    """The error of one operation among many."""
    told = known_error(error, where=where, traceparent=traceparent)
    return types_pb2.Error(
        code=status_of(told).value[0],
        reason=told.reason,
        message=told.message,
        metadata=told.metadata,
        retry_after_ms=int(retry_after(told) / timedelta(milliseconds=1)),
    )


def to_status(error: RegiongateError) -> status_pb2.Status:
    """The error of a whole call, with its details."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    wait = retry_after(error)
    if wait:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(wait)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, PolicyRejected):
        details.append(findings_that_fit(error.findings))
    return status_pb2.Status(
        code=status_of(error).value[0], message=error.message, details=[_packed(detail) for detail in details]
    )


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: BaseException, *, where: str = "call", traceparent: str = ""
) -> NoReturn:
    """Ends the call with the error's status and details."""
    status = to_status(known_error(error, where=where, traceparent=traceparent))
    await context.abort_with_status(rpc_status.to_status(status))


def error_from_message(message: types_pb2.Error) -> RegiongateError:
    """Builds the error again that `to_error_message` has made a message of."""
    return _with_retry(
        error_from_wire(message.reason, message.message, message.metadata),
        timedelta(milliseconds=message.retry_after_ms),
    )


def error_from_rpc(error: grpc.aio.AioRpcError) -> RegiongateError:
    """Builds the error again that `abort` has ended a call with, or the nearest one for what the transport says."""
    try:
        status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType] (the stub knows sync calls only)
    except ValueError:  # Details that contradict the status: not ours.
        status = None
    rebuilt: RegiongateError | None = None
    delay = timedelta()
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            rebuilt = error_from_wire(info.reason, status.message if status else "", info.metadata)
        elif detail.Unpack(retry):
            delay = retry.retry_delay.ToTimedelta()
        elif isinstance(rebuilt, PolicyRejected):
            rebuilt.findings = findings_from(detail)
    if rebuilt is not None:
        return _with_retry(rebuilt, delay)
    kind = _BARE_ERRORS.get(error.code(), RegiongateError)
    return kind(f"{error.code().name}: {error.details() or 'the call failed'}")


def to_finding_message(finding: Finding) -> policy_service_pb2.Finding:
    """A finding as the services send it."""
    return policy_service_pb2.Finding(
        severity=_SEVERITIES[finding.severity],
        code=finding.code,
        message=finding.message,
        path=finding.path,
        file=finding.file,
        line=finding.line,
        column=finding.column,
    )


def from_finding_message(message: policy_service_pb2.Finding) -> Finding:
    """A finding as it was before it was sent."""
    severity = next((name for name, number in _SEVERITIES.items() if number == message.severity), Severity.ERROR)
    return Finding(severity, message.code, message.message, message.path, message.file, message.line, message.column)


def findings_that_fit(findings: Iterable[Finding]) -> policy_service_pb2.ValidatePolicyResponse:
    """As many findings, errors first, as fit beside an error; `ValidatePolicy` has them all."""
    fitting = policy_service_pb2.ValidatePolicyResponse()
    room = _FINDINGS_BYTES
    for finding in sorted(findings, key=lambda item: item.severity is not Severity.ERROR):
        message = to_finding_message(finding)
        room -= message.ByteSize() + 4
        if room < 0:
            break
        fitting.findings.append(message)
    return fitting


def findings_from(detail: any_pb2.Any) -> tuple[Finding, ...]:
    """The findings of an error's detail; none when it is something else."""
    message = policy_service_pb2.ValidatePolicyResponse()
    if not detail.Unpack(message):
        return ()
    return tuple(from_finding_message(item) for item in message.findings)


def retry_after(error: RegiongateError) -> timedelta:
    """How long to wait before trying again; zero where waiting does not help."""
    if isinstance(error, Unavailable):
        return error.retry_after
    is_load = isinstance(error, LimitReached) and error.limit in _LOAD_LIMITS
    return _LOAD_PAUSE if is_load else timedelta()


def _with_retry(error: RegiongateError, delay: timedelta) -> RegiongateError:
    if isinstance(error, Unavailable) and delay:
        error.retry_after = delay
    return error


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
