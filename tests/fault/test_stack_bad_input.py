"""Bad input and missing neighbours, end to end: each has its status and reason, the processes stay up, nothing is half
written (law L8)."""

from __future__ import annotations

from signal import SIGKILL
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from gateway.status import findings_from
from policy.findings import Severity
from regiongate.v1 import policy_service_pb2 as policy_pb
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import types_pb2
from tests.support.extra_gateway import extra_gateway
from tests.support.law_stack import IDCS, LawStack, calling, until
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from tests.support.law_stack import RawCaller

PATIENCE = 45
Code = grpc.StatusCode
KEY = types_pb2.Key(string_key="bad-input")
ONE = types_pb2.Value(int64_value=1)


def put(region_code: str = "DE", key: types_pb2.Key = KEY, **others: Any) -> pb.PutRowRequest:
    wanted = {"dataset": "customers", "columns": {"spend": ONE}, **others}
    return pb.PutRowRequest(region_code=region_code, key=key, **wanted)


def batch(keys: list[str]) -> pb.BatchWriteRowsRequest:
    request = pb.BatchWriteRowsRequest(dataset="customers")
    for key in keys:
        write = request.writes.add(region_code="DE", key=types_pb2.Key(string_key=key))
        write.put.columns["spend"].int64_value = 1
    return request


def listing(**others: Any) -> pb.ListRowsRequest:
    return pb.ListRowsRequest(dataset="customers", region_code="DE", **others)


BAD = [
    ("an unknown RegionCode", "PutRow", put("ZZ"), Code.INVALID_ARGUMENT, "UNKNOWN_REGION"),
    ("a missing tag", "PutRow", put(""), Code.INVALID_ARGUMENT, "UNKNOWN_REGION"),
    ("a tag that is none", "PutRow", put("de"), Code.INVALID_ARGUMENT, "UNKNOWN_REGION"),
    ("an unknown dataset", "PutRow", put(dataset="nothing"), Code.INVALID_ARGUMENT, "UNKNOWN_DATASET"),
    ("an unknown column", "PutRow", put(columns={"nothing": ONE}), Code.INVALID_ARGUMENT, "UNKNOWN_COLUMN"),
    ("a wrong type", "PutRow", put(columns={"name": ONE}), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    ("no value", "PutRow", put(columns={"name": types_pb2.Value()}), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    ("no key", "PutRow", put(key=types_pb2.Key()), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    ("a key of another kind", "PutRow", put(key=types_pb2.Key(int64_key=1)), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    ("a key too long", "PutRow", put(key=types_pb2.Key(string_key="ü" * 257)), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    (
        "a row too large",
        "PutRow",
        put(columns={"name": types_pb2.Value(string_value="x" * ((1 << 20) + 1))}),
        Code.RESOURCE_EXHAUSTED,
        "LIMIT_REACHED",
    ),
    ("a request_id too long", "PutRow", put(request_id="x" * 65), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    ("a stale if_version", "PutRow", put(if_version=99), Code.ABORTED, "VERSION_CONFLICT"),
    ("a negative if_version", "PutRow", put(if_version=-1), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    (
        "a batch too large",
        "BatchWriteRows",
        batch([str(n) for n in range(1001)]),
        Code.RESOURCE_EXHAUSTED,
        "LIMIT_REACHED",
    ),
    ("a batch with a key twice", "BatchWriteRows", batch(["a", "b", "a"]), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    ("a broken page token", "ListRows", listing(page_token="AAAA"), Code.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"),
    ("a broken filter", "ListRows", listing(filter="spend >"), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    ("a page too large", "ListRows", listing(page_size=1001), Code.INVALID_ARGUMENT, "INVALID_VALUE"),
    (
        "a row that is not there",
        "GetRow",
        pb.GetRowRequest(dataset="customers", region_code="DE", key=types_pb2.Key(string_key="none")),
        Code.NOT_FOUND,
        "ROW_NOT_FOUND",
    ),
    (
        "what no rule allows",
        "GetRow",
        pb.GetRowRequest(dataset="customers", region_code="CN", key=KEY),
        Code.PERMISSION_DENIED,
        "ACCESS_DENIED",
    ),
]


async def test_law_l8_bad_input_is_refused_with_its_reason_and_leaves_nothing_behind(laws: LawStack) -> None:
    pids = {idc: laws.stack.pid(f"gateway-{idc}") for idc in IDCS}
    async with calling(laws.stack.gateway("fra")) as caller:
        await caller.put("DE", KEY.string_key, 1)
        before = await _all_rows(laws)
        told: list[str] = []
        for name, method, request, code, reason in BAD:
            status = await _status(caller, getattr(caller.rows, method), request)
            if status[:2] != (code, reason):
                told.append(f"{name}: {status[0].name} {status[1]}, not {code.name} {reason}")
        assert not told, "\n".join(told)
        hop = caller.metadata = (("x-regiongate-ingress", "ams"),)
        assert (await _status(caller, caller.rows.PutRow, put()))[:2] == (Code.INVALID_ARGUMENT, "INVALID_INPUT"), hop
    assert await _all_rows(laws) == before
    assert {idc: laws.stack.pid(f"gateway-{idc}") for idc in IDCS} == pids


async def test_law_l8_a_policy_that_does_not_stand_changes_nothing(laws: LawStack) -> None:
    revision, document = await laws.revision(), laws.document
    contradictory = document.replace("idcs: {sha: 100}", "idcs: {sin: 100}").replace("from: [SG]", "from: [XX]")
    cases = [
        ("version: [", Code.INVALID_ARGUMENT, "POLICY_REJECTED", 1),
        (contradictory, Code.INVALID_ARGUMENT, "POLICY_REJECTED", 2),
        (document.replace("EU: [DE, FR]", "EU: [FR]"), Code.INVALID_ARGUMENT, "POLICY_REJECTED", 1),
        (document.replace("shards: 4", "shards: 5"), Code.INVALID_ARGUMENT, "POLICY_REJECTED", 3),
    ]
    async with calling(laws.stack.gateway("fra")) as caller:
        for text, code, reason, findings in cases:
            request = policy_pb.ApplyPolicyRequest(document=text)
            status = await _status(caller, caller.policies.ApplyPolicy, request)
            assert status[:2] == (code, reason)
            assert status[2] >= findings, "every finding at once"
        request = policy_pb.ApplyPolicyRequest(document=document, parent=revision + 7)
        assert (await _status(caller, caller.policies.ApplyPolicy, request))[:2] == (Code.ABORTED, "REVISION_CONFLICT")
    assert await laws.revision() == revision


async def test_a_database_that_is_down_is_said_and_nothing_is_half_written(laws: LawStack) -> None:
    url = urlsplit(laws.stack.idcs["sin"].database)
    async with TcpProxy(url.port or 0) as proxy:
        password = f"{url.username}:{url.password}@{proxy.address}"
        detour = urlunsplit(url._replace(netloc=password))
        async with extra_gateway(laws, "sin", database_url=detour) as gateway, calling(gateway.address) as caller:
            await caller.put("SG", "half", 1)
            before = await _all_rows(laws)
            await proxy.cut()
            status = await _status(caller, caller.rows.PutRow, put("SG", types_pb2.Key(string_key="half")))
            assert status[:2] == (Code.UNAVAILABLE, "DATABASE_UNAVAILABLE")
            assert status[3] > 0, "it says when to come again"
            request = batch(["half", "other"])
            for write in request.writes:
                write.region_code = "SG"
            answer = await caller.call(caller.rows.BatchWriteRows, request)
            assert {result.error.reason for result in answer.results} == {"DATABASE_UNAVAILABLE"}
            assert await _all_rows(laws) == before
            await proxy.heal()
            await until(lambda: _is_written(caller), PATIENCE, "the database is not found again")


async def test_a_peer_that_is_down_is_said_and_comes_back(laws: LawStack) -> None:
    async with calling(laws.stack.gateway("ams"), purpose="billing") as caller:
        await caller.put("SG", "peer", 1)
        laws.stack.signal("gateway-sin", SIGKILL)
        status = await _status(caller, caller.rows.PutRow, put("SG", types_pb2.Key(string_key="peer")))
        assert status[:2] == (Code.UNAVAILABLE, "PEER_UNREACHABLE")
        assert status[3] > 0, "it says when to come again"
        await until(lambda: laws.is_ready("sin"), PATIENCE, "the gateway does not come back")
        await until(lambda: _is_written(caller), PATIENCE, "the gateway is not found again")


async def _is_written(caller: RawCaller) -> bool:
    try:
        await caller.rows.PutRow(put("SG", types_pb2.Key(string_key="half")), timeout=5, metadata=caller.metadata)
    except grpc.aio.AioRpcError as error:
        if error.code() is not Code.UNAVAILABLE:
            raise
        return False
    return True


async def _all_rows(laws: LawStack) -> dict[str, list[Any]]:
    return {idc: sorted(await laws.rows(idc)) for idc in IDCS}


async def _status(caller: RawCaller, method: Any, request: Any) -> tuple[Code, str, int, float]:
    """Status, reason, number of findings, and seconds to wait, as they are on the wire."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request, timeout=20, metadata=caller.metadata)
    reason, findings, wait = "", 0, 0.0
    for name, value in caught.value.trailing_metadata() or ():
        if name != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason = info.reason
                assert info.domain == "regiongate.dev"
            elif detail.Unpack(retry):
                wait = retry.retry_delay.ToTimedelta().total_seconds()
            else:
                findings = sum(finding.severity is Severity.ERROR for finding in findings_from(detail))
    return caught.value.code(), reason, findings, wait
