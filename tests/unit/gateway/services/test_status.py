"""Every error of the tree has its status, and survives the wire."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
import structlog.testing
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gateway.status import (
    DOMAIN,
    INTERNAL_TEXT,
    error_from_message,
    error_from_rpc,
    status_of,
    to_error_message,
    to_status,
)
from policy import errors
from policy.errors import ERRORS_BY_REASON, AccessDenied, LimitReached, PolicyRejected, RegiongateError, Unavailable
from policy.findings import Finding, Severity

EXPECTED = {
    "INVALID_INPUT": "INVALID_ARGUMENT",
    "UNKNOWN_REGION": "INVALID_ARGUMENT",
    "UNKNOWN_DATASET": "INVALID_ARGUMENT",
    "UNKNOWN_COLUMN": "INVALID_ARGUMENT",
    "INVALID_VALUE": "INVALID_ARGUMENT",
    "INVALID_PAGE_TOKEN": "INVALID_ARGUMENT",
    "INVALID_JOB": "INVALID_ARGUMENT",
    "JOB_CONFLICT": "INVALID_ARGUMENT",
    "POLICY_REJECTED": "INVALID_ARGUMENT",
    "ROW_NOT_FOUND": "NOT_FOUND",
    "REVISION_NOT_FOUND": "NOT_FOUND",
    "UNKNOWN_JOB": "NOT_FOUND",
    "ACCESS_DENIED": "PERMISSION_DENIED",
    "NOT_OWNED_HERE": "FAILED_PRECONDITION",
    "ILLEGAL_MOVE": "FAILED_PRECONDITION",
    "SCHEMA_DIFFERS": "FAILED_PRECONDITION",
    "DIGEST_MISMATCH": "FAILED_PRECONDITION",
    "ROW_EXISTS": "ALREADY_EXISTS",
    "ROW_MOVING": "UNAVAILABLE",
    "STALE_ATTEMPT": "ABORTED",
    "CLAIM_LOST": "ABORTED",
    "PLAN_CHANGED": "ABORTED",
    "UNKNOWN_IDC": "INVALID_ARGUMENT",
    "UNKNOWN_SHARD": "INVALID_ARGUMENT",
    "NO_POLICY": "FAILED_PRECONDITION",
    "CONFLICT": "ABORTED",
    "STALE_EPOCH": "ABORTED",
    "REVISION_CONFLICT": "ABORTED",
    "VERSION_CONFLICT": "ABORTED",
    "UNAVAILABLE": "UNAVAILABLE",
    "SHARD_UNAVAILABLE": "UNAVAILABLE",
    "TABLE_TOO_OLD": "UNAVAILABLE",
    "PEER_UNREACHABLE": "UNAVAILABLE",
    "DATABASE_UNAVAILABLE": "UNAVAILABLE",
    "STORE_UNAVAILABLE": "UNAVAILABLE",
    "LIMIT_REACHED": "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    "POLICY_NOT_EFFECTIVE": "DEADLINE_EXCEEDED",
}


class _Ended(grpc.aio.AioRpcError):
    """A call as a client sees it end."""

    def __init__(self, error: RegiongateError) -> None:
        status = rpc_status.to_status(to_status(error))
        trailers = grpc.aio.Metadata(*status.trailing_metadata)
        super().__init__(status.code, grpc.aio.Metadata(), trailers, details=status.details)


def test_every_error_of_the_tree_has_the_status_that_the_table_says():
    assert set(EXPECTED) == set(ERRORS_BY_REASON), "an error class without a line in this test"
    actual = {reason: status_of(kind("x")).name for reason, kind in ERRORS_BY_REASON.items()}
    assert actual == EXPECTED


def test_no_reason_belongs_to_two_classes():
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RegiongateError)]
    assert len({kind.reason for kind in classes}) == len(classes)


@pytest.mark.parametrize("reason", sorted(EXPECTED))
def test_an_error_survives_both_ways_over_the_wire(reason: str):
    error = ERRORS_BY_REASON[reason]("what went wrong")
    for name in error.wire:
        default = getattr(error, name)
        setattr(error, name, 7 if isinstance(default, int) else ("a:1", "b:2") if default == () else "text")
    for rebuilt in (error_from_message(to_error_message(error)), error_from_rpc(_Ended(error))):
        assert type(rebuilt) is type(error)
        assert (rebuilt.message, rebuilt.metadata) == (error.message, error.metadata)


def test_what_helps_to_wait_for_says_how_long():
    error = Unavailable("later", retry_after=timedelta(milliseconds=350))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    details = to_status(error).details
    assert details[0].Unpack(info)
    assert details[1].Unpack(retry)
    assert (info.domain, info.reason) == (DOMAIN, "UNAVAILABLE")
    assert retry.retry_delay.ToTimedelta() == error.retry_after
    assert to_error_message(error).retry_after_ms == 350
    for rebuilt in (error_from_message(to_error_message(error)), error_from_rpc(_Ended(error))):
        assert isinstance(rebuilt, Unavailable)
        assert rebuilt.retry_after == error.retry_after


def test_a_limit_on_load_passes_and_a_limit_on_size_stays():
    assert to_error_message(LimitReached("too much", limit="max_operations")).retry_after_ms == 100
    assert to_error_message(LimitReached("too large", limit="row_bytes")).retry_after_ms == 0


def test_a_denial_names_its_rule_and_revision():
    error = AccessDenied("no", rule="china", policy_revision=3)
    assert dict(to_error_message(error).metadata) == {"rule": "china", "policy_revision": "3"}


def test_an_unexpected_error_tells_the_caller_nothing_of_itself_and_is_logged():
    with structlog.testing.capture_logs() as logged:
        message = to_error_message(ValueError("a row's secret"), traceparent="00-ab-cd-01")
    assert (message.code, message.message, message.reason) == (
        grpc.StatusCode.INTERNAL.value[0],
        INTERNAL_TEXT,
        "INTERNAL",
    )
    assert logged[0]["log_level"] == "error"
    assert logged[0]["traceparent"] == "00-ab-cd-01"


def test_a_rejected_policy_carries_its_findings_errors_first_as_far_as_they_fit():
    findings = [Finding(Severity.WARNING, "MINOR", "small")] + [
        Finding(Severity.ERROR, "MAJOR", f"finding {number}: {'x' * 80}", line=number) for number in range(500)
    ]
    error = PolicyRejected("501 findings", findings=tuple(findings))
    rebuilt = error_from_rpc(_Ended(error))
    assert isinstance(rebuilt, PolicyRejected)
    assert 20 < len(rebuilt.findings) < 100
    assert rebuilt.findings[0] == findings[1]
    assert to_status(error).ByteSize() < 6000


def test_what_the_transport_says_becomes_the_nearest_error():
    def ended(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="gone")

    assert type(error_from_rpc(ended(grpc.StatusCode.UNAVAILABLE))) is Unavailable
    assert type(error_from_rpc(ended(grpc.StatusCode.DEADLINE_EXCEEDED))) is errors.DeadlineExceeded
    assert type(error_from_rpc(ended(grpc.StatusCode.UNKNOWN))) is RegiongateError
