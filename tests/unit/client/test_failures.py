"""What is tried again, how soon, and what each status means."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from gateway.client.failures import Backoff, Failed, can_retry, failed_call, failed_operation, persist
from policy import errors
from policy.errors import ERRORS_BY_REASON, RegiongateError
from regiongate.v1 import types_pb2

RETRIED = (errors.Unavailable, errors.NotOwnedHere, errors.StaleEpoch, errors.DeadlineExceeded)


@pytest.mark.parametrize("kind", ERRORS_BY_REASON.values(), ids=ERRORS_BY_REASON.keys())
def test_only_what_waiting_or_going_elsewhere_can_mend_is_tried_again(kind):
    assert can_retry(Failed(kind("text"))) is issubclass(kind, RETRIED)


@pytest.mark.parametrize(
    ("limit", "is_load"),
    [("max_operations", True), ("max_streams", True), ("answer_bytes", True), ("row_bytes", False), ("", False)],
)
def test_a_limit_on_load_is_tried_again_and_one_on_size_is_not(limit, is_load):
    assert can_retry(Failed(errors.LimitReached("too much", limit=limit))) is is_load


def test_the_rest_of_a_full_answer_is_asked_for_without_growing_waits():
    backoff = Backoff()
    waits = [backoff.after(Failed(errors.LimitReached("full", limit="answer_bytes"))) for _ in range(50)]
    assert max(waits) <= 0.02


def test_a_gateway_that_is_leaving_is_not_waited_for():
    leaving = Failed(errors.Unavailable("this gateway is stopping"), retry_after=0.2)
    assert leaving.is_transport
    assert Backoff().after(leaving) <= 0.02
    assert not Failed(errors.ShardUnavailable("opening"), retry_after=0.2).is_transport
    assert not Failed(errors.PeerUnreachable("fra does not answer"), retry_after=0.2).is_transport


def test_waits_grow_to_a_bound_and_are_never_shorter_than_half_of_what_was_asked():
    backoff = Backoff()
    waits = [backoff.after(Failed(errors.ShardUnavailable("opening"))) for _ in range(20)]
    assert waits[0] <= 0.02
    assert 0.5 <= waits[-1] <= 1.0
    assert Backoff().after(Failed(errors.ShardUnavailable("opening"), retry_after=0.4)) >= 0.2


def test_the_first_redirects_are_followed_at_once_and_further_ones_wait():
    backoff = Backoff()
    waits = [backoff.after(Failed(errors.NotOwnedHere("elsewhere", owner_idc="fra"))) for _ in range(4)]
    assert waits[:2] == [0.0, 0.0]
    assert min(waits[2:]) > 0


def call_error(code: grpc.StatusCode, text: str = "", *details: object) -> grpc.aio.AioRpcError:
    packed = []
    for detail in details:
        message = any_pb2.Any()
        message.Pack(detail)
        packed.append(message)
    status = status_pb2.Status(code=code.value[0], message=text, details=packed).SerializeToString()
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status)) if details else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=text)


def test_an_error_with_details_becomes_the_class_that_was_raised():
    info = error_details_pb2.ErrorInfo(reason="ACCESS_DENIED", metadata={"rule": "china", "policy_revision": "7"})
    failed = failed_call(call_error(grpc.StatusCode.PERMISSION_DENIED, "no", info), "a:1")
    assert isinstance(failed.error, errors.AccessDenied)
    assert (failed.error.rule, failed.error.policy_revision, failed.error.message) == ("china", 7, "no")


def test_the_time_to_wait_is_read_from_the_details():
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    info = error_details_pb2.ErrorInfo(reason="SHARD_UNAVAILABLE")
    failed = failed_call(call_error(grpc.StatusCode.UNAVAILABLE, "opening", retry, info), "a:1")
    assert isinstance(failed.error, errors.ShardUnavailable)
    assert failed.retry_after == failed.error.retry_after.total_seconds() == 1.5


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "refused", errors.PeerUnreachable),
        (grpc.StatusCode.CANCELLED, "dropped", errors.PeerUnreachable),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", errors.PeerUnreachable),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", errors.PeerUnreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", errors.LimitReached),
        (grpc.StatusCode.UNIMPLEMENTED, "", errors.InvalidInput),
        (grpc.StatusCode.UNAUTHENTICATED, "", errors.AccessDenied),
        (grpc.StatusCode.DATA_LOSS, "", RegiongateError),
    ],
)
def test_a_bare_status_has_a_meaning_too(code, text, kind):
    assert type(failed_call(call_error(code, text), "a:1").error) is kind


def test_an_operations_error_carries_the_same_as_a_calls():
    wire = types_pb2.Error(reason="NOT_OWNED_HERE", message="go", retry_after_ms=0)
    wire.metadata.update({"owner_idc": "fra", "endpoints": "a:1,b:2"})
    failed = failed_operation(wire)
    assert isinstance(failed.error, errors.NotOwnedHere)
    assert (failed.error.owner_idc, failed.error.endpoints) == ("fra", ("a:1", "b:2"))


async def test_attempts_end_with_the_deadline_and_tell_the_last_failure():
    attempts: list[float] = []

    async def attempt(until: float) -> None:
        attempts.append(until)
        raise Failed(errors.ShardUnavailable(f"attempt {len(attempts)}"))

    now = asyncio.get_running_loop().time
    deadline = now() + 0.15
    with pytest.raises(errors.ShardUnavailable) as last:
        await persist(attempt, deadline, 0.05)
    assert last.value.message == f"attempt {len(attempts)}"
    assert len(attempts) > 1
    assert all(until <= deadline for until in attempts)
    assert now() < deadline + 0.1
