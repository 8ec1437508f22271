"""Rows through every method: served, forwarded, redirected, denied, each answer explained (law L7)."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest
import pytest_asyncio

from regiongate.v1 import routing_service_pb2 as routing_pb
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import types_pb2
from tests.support.gateways import Site, refusal, running_site

pytestmark = pytest.mark.asyncio(loop_scope="module")

SUPPORT = [("x-regiongate-purpose", "support")]
ENTRY = [("x-regiongate-purpose", "entry")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server) as running:
        yield running


def key(text: str) -> types_pb2.Key:
    return types_pb2.Key(string_key=text)


def row(name: str, spend: int) -> dict[str, types_pb2.Value]:
    return {"name": types_pb2.Value(string_value=name), "spend": types_pb2.Value(int64_value=spend)}


def put(region: str, text: str, spend: int = 1, **fields: object) -> pb.PutRowRequest:
    columns = row(f"n-{text}", spend)
    return pb.PutRowRequest(dataset="customers", region_code=region, key=key(text), columns=columns, **fields)


def get(region: str, text: str, **fields: object) -> pb.GetRowRequest:
    return pb.GetRowRequest(dataset="customers", region_code=region, key=key(text), **fields)


async def test_a_row_is_read_as_it_was_written_through_every_gateway_of_its_jurisdiction(site: Site):
    written = await site["fra"].rows.PutRow(put("DE", "everywhere", 7), timeout=5)
    for idc in ("fra", "ams"):
        found = await site[idc].rows.GetRow(get("DE", "everywhere"), timeout=5)
        assert dict(found.row.columns) == row("n-everywhere", 7)
        assert (found.row.version, found.row.update_time) == (written.receipt.version, written.receipt.update_time)
        assert (found.decision.rule, found.decision.policy_revision) == ("europe", 1)
        assert (found.decision.asking_jurisdiction, found.decision.owner_idc) == ("EU", written.decision.owner_idc)


async def test_across_a_border_withheld_columns_do_not_travel_and_are_named(site: Site):
    await site["fra"].rows.PutRow(put("DE", "withheld", 7), timeout=5)
    found = await site["sin"].rows.GetRow(get("DE", "withheld"), timeout=5, metadata=SUPPORT)
    assert list(found.row.columns) == ["spend"]
    assert (found.decision.rule, list(found.decision.withheld)) == ("eu-support", ["name"])
    assert found.decision.asking_jurisdiction == "SG"


async def test_a_write_across_a_border_is_seen_at_home(site: Site):
    await site["sin"].rows.PutRow(put("FR", "entered", 5), timeout=5, metadata=ENTRY)
    found = await site["ams"].rows.GetRow(get("FR", "entered"), timeout=5)
    assert found.row.columns["spend"].int64_value == 5


async def test_a_region_without_transit_is_answered_by_naming_its_owner(site: Site):
    await site["sha"].rows.PutRow(put("CN", "stays"), timeout=5)
    audit = [("x-regiongate-purpose", "audit")]
    code, reason, metadata = await refusal(site["fra"].rows.GetRow(get("CN", "stays"), timeout=5, metadata=audit))
    assert (code, reason, metadata["owner_idc"]) == ("FAILED_PRECONDITION", "NOT_OWNED_HERE", "sha")
    assert metadata["endpoints"] == str(site["sha"].gateway.address)
    straight = [*audit, ("x-regiongate-origin", "fra")]
    found = await site["sha"].rows.GetRow(get("CN", "stays"), timeout=5, metadata=straight)
    assert (found.decision.rule, found.decision.asking_jurisdiction) == ("cn-audit", "EU")


async def test_a_stated_origin_can_only_narrow(site: Site):
    await site["sha"].rows.PutRow(put("CN", "narrow"), timeout=5)
    call = site["sha"].rows.GetRow(get("CN", "narrow"), timeout=5, metadata=[("x-regiongate-origin", "sin")])
    assert (await refusal(call))[:2] == ("PERMISSION_DENIED", "ACCESS_DENIED")
    unknown = site["sha"].rows.GetRow(get("CN", "narrow"), timeout=5, metadata=[("x-regiongate-origin", "mars")])
    assert (await refusal(unknown))[:2] == ("PERMISSION_DENIED", "ACCESS_DENIED")


async def test_a_retry_with_the_same_request_id_returns_the_first_result(site: Site):
    rows = site["fra"].rows
    first = await rows.PutRow(put("DE", "retry", 1, request_id="r-1"), timeout=5)
    await rows.PutRow(put("DE", "retry", 2), timeout=5)
    again = await rows.PutRow(put("DE", "retry", 1, request_id="r-1"), timeout=5)
    assert again.receipt == first.receipt
    assert (await rows.GetRow(get("DE", "retry"), timeout=5)).row.columns["spend"].int64_value == 2


async def test_a_deleted_row_is_gone_and_deleting_it_again_succeeds(site: Site):
    rows = site["fra"].rows
    version = (await rows.PutRow(put("DE", "deleted"), timeout=5)).receipt.version
    request = pb.DeleteRowRequest(dataset="customers", region_code="DE", key=key("deleted"), if_version=version)
    await rows.DeleteRow(request, timeout=5)
    assert (await refusal(rows.GetRow(get("DE", "deleted"), timeout=5)))[1] == "ROW_NOT_FOUND"
    again = pb.DeleteRowRequest(dataset="customers", region_code="DE", key=key("deleted"))
    assert (await rows.DeleteRow(again, timeout=5)).receipt.version > version


async def test_a_batch_over_several_regions_is_split_by_owner_and_answered_row_by_row(site: Site):
    places = [("DE", f"split-{number}") for number in range(20)] + [("CN", "split"), ("SG", "split")]
    writes = [
        pb.RowWrite(region_code=region, key=key(text), put=pb.RowContent(columns=row("n", number)))
        for number, (region, text) in enumerate(places)
    ]
    request = pb.BatchWriteRowsRequest(dataset="customers", writes=writes, request_id="split")
    response = await site["fra"].rows.BatchWriteRows(request, timeout=5)
    groups = [response.groups[result.group] for result in response.results]
    assert {group.decision.owner_idc for group in groups[:20]} == {"fra", "ams"}
    assert all(result.HasField("version") for result in response.results[:20])
    assert all(group.HasField("update_time") for group in groups[:20])
    assert [group.decision.rule for group in groups[20:]] == ["china", "asia"]
    assert len(response.groups) < len(response.results), "what results have in common is said once"
    assert [result.error.reason for result in response.results[20:]] == ["ACCESS_DENIED"] * 2
    keys = [types_pb2.RowKey(region_code=region, key=key(text)) for region, text in places]
    read = pb.BatchGetRowsRequest(dataset="customers", keys=[*keys, keys[0]], columns=["spend"])
    found = await site["ams"].rows.BatchGetRows(read, timeout=5)
    results = found.results
    assert [result.row.columns["spend"].int64_value for result in results[:20]] == list(range(20))
    owners = [found.decisions[result.decision].owner_idc for result in results[:20]]
    assert owners == [group.decision.owner_idc for group in groups[:20]]
    assert len(found.decisions) < len(results)
    assert results[22].row == results[0].row
    assert list(results[0].row.columns) == ["spend"]


async def test_an_answer_never_outgrows_what_clients_take(site: Site):
    large = types_pb2.Value(string_value="x" * 900_000)
    for number in range(5):
        request = put("DE", f"large-{number}")
        request.columns["name"].CopyFrom(large)
        await site["fra"].rows.PutRow(request, timeout=5)
    keys = [types_pb2.RowKey(region_code="DE", key=key(f"large-{number}")) for number in range(5)]
    response = await site["fra"].rows.BatchGetRows(pb.BatchGetRowsRequest(dataset="customers", keys=keys), timeout=5)
    outcomes = [result.error.reason or "row" for result in response.results]
    assert outcomes == ["row", "row", "row", "LIMIT_REACHED", "LIMIT_REACHED"]


async def test_a_stream_answers_each_operation_and_a_bad_one_fails_alone(site: Site):
    await site["fra"].rows.PutRow(put("DE", "stream", 3), timeout=5)
    operations = [
        pb.Operation(id=1, dataset="customers", region_code="DE", key=key("stream"), get=pb.GetAction()),
        pb.Operation(id=2, dataset="nothing", region_code="DE", key=key("stream"), get=pb.GetAction()),
        pb.Operation(id=3, dataset="customers", region_code="CN", key=key("stream"), get=pb.GetAction()),
        pb.Operation(
            id=4, dataset="customers", region_code="DE", key=key("new"), put=pb.RowContent(columns=row("a", 1))
        ),
        pb.Operation(id=4, dataset="customers", region_code="DE", key=key("new"), get=pb.GetAction()),
    ]
    stream = site["fra"].rows.Exchange()
    await stream.write(pb.ExchangeRequest(operations=operations))
    await stream.done_writing()
    results: list[pb.OperationResult] = []
    while (response := await stream.read()) is not grpc.aio.EOF:
        results += response.results
    found = sorted((result.id, result.error.reason or str(result.WhichOneof("outcome"))) for result in results)
    assert found == [
        (1, "row"),
        (2, "UNKNOWN_DATASET"),
        (3, "ACCESS_DENIED"),
        (4, "INVALID_INPUT"),
        (4, "receipt"),
    ]


async def test_a_sender_that_does_not_read_its_answers_is_not_read_from(site: Site):
    """The number of messages in work on one stream is bounded."""
    large = put("DE", "slow-reader")
    large.columns["name"].string_value = "x" * 500_000
    await site["fra"].rows.PutRow(large, timeout=5)
    limit = site["fra"].settings.max_stream_messages
    message = pb.ExchangeRequest(
        operations=[
            pb.Operation(id=1, dataset="customers", region_code="DE", key=key("slow-reader"), get=pb.GetAction())
        ]
    )
    stream = site["fra"].rows.Exchange()
    sent = 0
    async with asyncio.timeout(20):
        answers = 0
        for _ in range(4 * limit):
            await stream.write(message)
            sent += 1
        await stream.done_writing()
        while (response := await stream.read()) is not grpc.aio.EOF:
            answers += len(response.results)
    assert answers == sent


async def test_a_route_names_owner_endpoints_and_decision(site: Site):
    request = routing_pb.ResolveRouteRequest(
        dataset="customers",
        region_code="DE",
        key=key("route"),
        operation=types_pb2.OPERATION_KIND_READ,
        purpose="support",
    )
    found = await site["sin"].routes.ResolveRoute(request, timeout=5)
    assert found.allowed
    assert found.decision.rule == "eu-support"
    assert list(found.endpoints) == [str(site[found.route.idc].gateway.address)]
    request.operation = types_pb2.OPERATION_KIND_WRITE
    denied = await site["sin"].routes.ResolveRoute(request, timeout=5)
    assert not denied.allowed
    assert denied.reason


async def test_a_watcher_learns_all_routes_at_once(site: Site):
    watch = site["sin"].routes.WatchRoutes(routing_pb.WatchRoutesRequest())
    first = await asyncio.wait_for(watch.read(), 5)
    assert first.snapshot
    assert first.home_idc == "sin"
    assert len(first.routes) == 2 + 4 * 2 + 2
    assert {entry.idc: list(entry.endpoints) for entry in first.idcs} == {
        idc: [str(running.gateway.address)] for idc, running in site.gateways.items()
    }
    watch.cancel()
