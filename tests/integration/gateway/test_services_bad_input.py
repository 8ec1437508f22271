"""Every bad input has its status and its reason, the process stays up, and nothing is half written (law L8)."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_status import rpc_status

from gateway.status import error_from_rpc
from policy.errors import PolicyRejected
from regiongate.v1 import policy_service_pb2 as policy_pb
from regiongate.v1 import routing_service_pb2 as routing_pb
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import shard_service_pb2 as shard_pb
from regiongate.v1 import types_pb2
from tests.support.gateways import POLICY, Site, refusal, running_site

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = types_pb2.Key(string_key="bad-input")
NAME = {"name": types_pb2.Value(string_value="a")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server) as running:
        yield running


def put(**fields: object) -> pb.PutRowRequest:
    return pb.PutRowRequest(**{"dataset": "customers", "region_code": "DE", "key": KEY, "columns": NAME} | fields)


def get(**fields: object) -> pb.GetRowRequest:
    return pb.GetRowRequest(**{"dataset": "customers", "region_code": "DE", "key": KEY} | fields)


def listing(**fields: object) -> pb.ListRowsRequest:
    return pb.ListRowsRequest(**{"dataset": "customers", "region_code": "DE"} | fields)


INVALID = "INVALID_ARGUMENT"
FULL = "RESOURCE_EXHAUSTED"
TOO_LONG = types_pb2.Key(string_key="k" * 513)
TOO_LARGE = {"name": types_pb2.Value(string_value="x" * ((1 << 20) + 1))}
WRONG_TYPE = {"spend": types_pb2.Value(string_value="marker-value")}
WRONG = {
    "put of an unknown region": ("PutRow", put(region_code="XX"), INVALID, "UNKNOWN_REGION"),
    "put without a tag": ("PutRow", put(region_code=""), INVALID, "UNKNOWN_REGION"),
    "put to an unknown dataset": ("PutRow", put(dataset="nothing"), INVALID, "UNKNOWN_DATASET"),
    "put without a dataset": ("PutRow", put(dataset=""), INVALID, "UNKNOWN_DATASET"),
    "put of an unknown column": ("PutRow", put(columns={"shoe": NAME["name"]}), INVALID, "UNKNOWN_COLUMN"),
    "put of a wrong type": ("PutRow", put(columns=WRONG_TYPE), INVALID, "INVALID_VALUE"),
    "put of a value without a kind": ("PutRow", put(columns={"name": types_pb2.Value()}), INVALID, "INVALID_VALUE"),
    "put without a key": ("PutRow", put(key=types_pb2.Key()), INVALID, "INVALID_VALUE"),
    "put of another kind of key": ("PutRow", put(key=types_pb2.Key(int64_key=1)), INVALID, "INVALID_VALUE"),
    "put of a key too long": ("PutRow", put(key=TOO_LONG), INVALID, "INVALID_VALUE"),
    "put of a row too large": ("PutRow", put(columns=TOO_LARGE), FULL, "LIMIT_REACHED"),
    "put with a negative if_version": ("PutRow", put(if_version=-1), INVALID, "INVALID_VALUE"),
    "put with a request_id too long": ("PutRow", put(request_id="r" * 65), INVALID, "INVALID_VALUE"),
    "put of a row that must have a version": ("PutRow", put(if_version=7), "ABORTED", "VERSION_CONFLICT"),
    "get of an unknown region": ("GetRow", get(region_code="XX"), INVALID, "UNKNOWN_REGION"),
    "get of an unknown column": ("GetRow", get(columns=["shoe"]), INVALID, "UNKNOWN_COLUMN"),
    "get of a row that is not there": ("GetRow", get(), "NOT_FOUND", "ROW_NOT_FOUND"),
    "delete with if_version 0": (
        "DeleteRow",
        pb.DeleteRowRequest(dataset="customers", region_code="DE", key=KEY, if_version=0),
        INVALID,
        "INVALID_VALUE",
    ),
    "get batch too large": (
        "BatchGetRows",
        pb.BatchGetRowsRequest(dataset="customers", keys=[types_pb2.RowKey(key=KEY)] * 1001),
        FULL,
        "LIMIT_REACHED",
    ),
    "write batch too large": (
        "BatchWriteRows",
        pb.BatchWriteRowsRequest(dataset="customers", writes=[pb.RowWrite(region_code="DE", key=KEY)] * 1001),
        FULL,
        "LIMIT_REACHED",
    ),
    "write batch with a row twice": (
        "BatchWriteRows",
        pb.BatchWriteRowsRequest(
            dataset="customers",
            writes=[pb.RowWrite(region_code="DE", key=KEY, put=pb.RowContent(columns=NAME)) for _ in range(2)],
        ),
        INVALID,
        "INVALID_VALUE",
    ),
    "write batch to an unknown dataset": (
        "BatchWriteRows",
        pb.BatchWriteRowsRequest(dataset="nothing"),
        INVALID,
        "UNKNOWN_DATASET",
    ),
    "list of an unknown region": ("ListRows", listing(region_code="XX"), INVALID, "UNKNOWN_REGION"),
    "list without a tag": ("ListRows", listing(region_code=""), INVALID, "UNKNOWN_REGION"),
    "list with a broken token": ("ListRows", listing(page_token="nonsense"), INVALID, "INVALID_PAGE_TOKEN"),
    "list with a broken filter": ("ListRows", listing(filter="spend >"), INVALID, "INVALID_VALUE"),
    "list with an unknown column in its filter": ("ListRows", listing(filter="shoe = 1"), INVALID, "UNKNOWN_COLUMN"),
    "list of an unknown column": ("ListRows", listing(columns=["shoe"]), INVALID, "UNKNOWN_COLUMN"),
    "list with a page too large": ("ListRows", listing(page_size=1001), INVALID, "INVALID_VALUE"),
    "list with a negative page": ("ListRows", listing(page_size=-1), INVALID, "INVALID_VALUE"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_wrong_request_is_refused_with_its_status_and_reason(site: Site, what: str):
    method, request, code, reason = WRONG[what]
    found = await refusal(getattr(site["fra"].rows, method)(request, timeout=5))
    assert found[:2] == (code, reason)


async def test_nothing_of_a_refused_write_is_there_afterwards(site: Site):
    assert (await refusal(site["fra"].rows.GetRow(get(), timeout=5)))[1] == "ROW_NOT_FOUND"


async def test_an_error_never_repeats_a_key_or_a_value(site: Site):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site["fra"].rows.PutRow(put(columns=WRONG_TYPE, key=types_pb2.Key(string_key="marker-key")), timeout=5)
    told = str(rpc_status.from_call(caught.value)) + str(caught.value.details())
    assert "marker" not in told
    assert "spend" in told


async def test_one_bad_row_of_a_batch_fails_alone(site: Site):
    writes = [
        pb.RowWrite(region_code=region, key=types_pb2.Key(string_key=f"batch-{region}"), put=pb.RowContent(columns=row))
        for region, row in (("DE", NAME), ("XX", NAME), ("", NAME), ("FR", WRONG_TYPE), ("FR", NAME))
    ]
    # The last one would be the same row as the one before it, had that been one.
    writes[3].key.string_key = "batch-wrong"
    writes.append(pb.RowWrite(region_code="DE", key=types_pb2.Key(string_key="batch-nothing")))
    request = pb.BatchWriteRowsRequest(dataset="customers", writes=writes)
    response = await site["fra"].rows.BatchWriteRows(request, timeout=5)
    outcomes = [result.error.reason or result.WhichOneof("outcome") for result in response.results]
    assert outcomes == ["version", "UNKNOWN_REGION", "UNKNOWN_REGION", "INVALID_VALUE", "version", "INVALID_INPUT"]
    decided = [result.HasField("group") for result in response.results]
    assert decided == [True, False, False, False, True, False]


async def test_a_stale_if_version_names_the_version_that_is_there(site: Site):
    rows = site["fra"].rows
    key = types_pb2.Key(string_key="versions")
    first = (await rows.PutRow(put(key=key), timeout=5)).receipt.version
    second = (await rows.PutRow(put(key=key, if_version=first), timeout=5)).receipt.version
    code, reason, metadata = await refusal(rows.PutRow(put(key=key, if_version=first), timeout=5))
    assert (code, reason, metadata) == ("ABORTED", "VERSION_CONFLICT", {"current": str(second)})
    assert (await rows.GetRow(get(key=key), timeout=5)).row.version == second


async def test_a_denied_read_names_rule_and_revision(site: Site):
    code, reason, metadata = await refusal(site["sin"].rows.GetRow(get(), timeout=5))
    assert (code, reason) == ("PERMISSION_DENIED", "ACCESS_DENIED")
    assert metadata == {"rule": "europe", "policy_revision": "1"}


async def test_a_call_that_has_crossed_a_hop_is_not_taken_from_a_client(site: Site):
    call = site["fra"].rows.GetRow(get(), timeout=5, metadata=[("x-regiongate-ingress", "sin")])
    assert (await refusal(call))[:2] == (INVALID, "INVALID_INPUT")
    stream = site["fra"].rows.Exchange(iter([pb.ExchangeRequest()]), metadata=[("x-regiongate-ingress", "sin")])
    assert (await refusal(stream.read()))[:2] == (INVALID, "INVALID_INPUT")


async def test_a_call_between_idcs_says_where_it_has_entered(site: Site):
    stream = site["fra"].peer_rows.Exchange(iter([pb.ExchangeRequest()]))
    assert (await refusal(stream.read()))[:2] == (INVALID, "INVALID_INPUT")
    scan = shard_pb.ScanRowsRequest(dataset="customers", limit=1)
    assert (await refusal(site["fra"].shards.ScanRows(scan, timeout=5)))[:2] == (INVALID, "INVALID_INPUT")


async def test_peers_have_no_unary_calls_for_rows(site: Site):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site["fra"].peer_rows.GetRow(get(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_what_a_peer_has_forwarded_is_never_forwarded_again(site: Site):
    operation = pb.Operation(id=1, dataset="customers", region_code="SG", key=KEY, get=pb.GetAction())
    metadata = [("x-regiongate-ingress", "sin")]
    stream = site["fra"].peer_rows.Exchange(metadata=metadata)
    await stream.write(pb.ExchangeRequest(operations=[operation]))
    (result,) = (await stream.read()).results
    assert result.error.reason == "NOT_OWNED_HERE"
    assert result.error.metadata["owner_idc"] == "sin"
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_a_fence_is_opened_only_for_what_is_assigned_here(site: Site):
    stray = shard_pb.OpenShardsRequest(shards=[shard_pb.ShardRef(region_code="CN", shard=0, epoch=1)])
    code, reason, metadata = await refusal(site["fra"].shards.OpenShards(stray, timeout=1))
    assert (code, reason, metadata) == ("FAILED_PRECONDITION", "NOT_OWNED_HERE", {"owner_idc": "sha"})
    call = site["sha"].shards.OpenShards(stray, timeout=1, metadata=[("x-regiongate-ingress", "fra")])
    assert (await refusal(call))[:2] == (INVALID, "INVALID_INPUT")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"region_code": "XX", "key": KEY, "operation": 1}, "UNKNOWN_REGION"),
        ({"region_code": "DE", "key": KEY}, "INVALID_VALUE"),
        ({"region_code": "DE", "operation": 1}, "INVALID_VALUE"),
        ({"region_code": "DE", "key": KEY, "operation": 1, "dataset": "nothing"}, "UNKNOWN_DATASET"),
    ],
    ids=["unknown region", "no operation", "no key", "unknown dataset"],
)
async def test_a_wrong_question_for_a_route_is_refused(site: Site, fields: dict[str, object], reason: str):
    request = routing_pb.ResolveRouteRequest(**{"dataset": "customers"} | fields)
    assert (await refusal(site["fra"].routes.ResolveRoute(request, timeout=5)))[:2] == (INVALID, reason)


UNCOVERED = POLICY.replace("  - {name: asia, regions: [SG], jurisdictions: [SG], idcs: {sin: 100}, shards: 2}\n", "")
CONTRADICTORY = POLICY.replace("idcs: {sha: 100}", "idcs: {fra: 100}").replace("class: personal", "clas: personal")
REFUSED = {
    "unparsable": ("version: 1\nidcs: {fra: [", {}, INVALID, "POLICY_REJECTED"),
    "contradictory": (CONTRADICTORY, {}, INVALID, "POLICY_REJECTED"),
    "leaves a used region uncovered": (UNCOVERED, {}, INVALID, "POLICY_REJECTED"),
    "another parent": (POLICY, {"parent": 7}, "ABORTED", "REVISION_CONFLICT"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_policy_that_cannot_stand_is_refused_and_nothing_is_stored(site: Site, what: str):
    document, fields, code, reason = REFUSED[what]
    request = policy_pb.ApplyPolicyRequest(document=document, author="test", **fields)
    found = await refusal(site["fra"].policies.ApplyPolicy(request, timeout=10))
    assert found[:2] == (code, reason)
    if reason == "REVISION_CONFLICT":
        assert found[2] == {"parent": "7", "current": "1"}
    current = await site["fra"].policies.GetPolicy(policy_pb.GetPolicyRequest(), timeout=5)
    assert current.policy.revision == 1


async def test_a_rejected_policy_comes_back_with_every_finding(site: Site):
    request = policy_pb.ApplyPolicyRequest(document=CONTRADICTORY, author="test", file="policy.yaml")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site["fra"].policies.ApplyPolicy(request, timeout=10)
    rejected = error_from_rpc(caught.value)
    assert isinstance(rejected, PolicyRejected)
    places = {(finding.file, finding.line) for finding in rejected.findings}
    assert len(places) >= 2, "one finding is not all of them"
    assert all(file == "policy.yaml" and line for file, line in places)


async def test_a_message_above_the_limit_ends_that_call_and_no_other(site: Site):
    huge = pb.PutRowRequest(columns={"name": types_pb2.Value(string_value="x" * (17 << 20))})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site["fra"].rows.PutRow(huge, timeout=5)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await site["fra"].rows.PutRow(put(key=types_pb2.Key(string_key="after")), timeout=5)
