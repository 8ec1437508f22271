"""MoveRow over whole gateways: a row that changes its RegionCode, and with it its home."""

from __future__ import annotations

import grpc.aio
import pytest
import pytest_asyncio

from regiongate.v1 import row_service_pb2 as pb
from tests.support.gateways import Site, refusal, running_site
from tests.support.row_move_site import POLICY, PURPOSE, RELOCATION, columns, get, key, move, put

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server, "fra", "sin", "sha", policy=POLICY) as running:
        yield running


async def found(site: Site, region: str, text: str):
    """The row, read at home; None without one."""
    home = {"DE": "fra", "FR": "fra", "SG": "sin", "CN": "sha"}[region]
    try:
        return (await site[home].rows.GetRow(get(region, text), timeout=5)).row
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None


@pytest.mark.parametrize("ingress", ["fra", "sin"])
async def test_a_row_moves_across_a_border_by_whichever_gateway(site: Site, ingress: str) -> None:
    text = f"across-{ingress}"
    await site["fra"].rows.PutRow(put("DE", text), timeout=5)
    answer = await site[ingress].rows.MoveRow(move("DE", text, "SG"), timeout=5, metadata=RELOCATION)
    assert await found(site, "DE", text) is None
    row = await found(site, "SG", text)
    assert row is not None
    assert (dict(row.columns), row.version) == (columns(), answer.receipt.version)
    assert row.update_time == answer.receipt.update_time
    assert answer.from_decision.rule == {"fra": "europe", "sin": "relocation"}[ingress]
    assert answer.to_decision.rule == {"fra": "asia-entry", "sin": "asia"}[ingress]
    assert (answer.from_decision.owner_idc, answer.to_decision.owner_idc) == ("fra", "sin")


async def test_a_row_moves_inside_one_idc_and_back(site: Site) -> None:
    await site["fra"].rows.PutRow(put("DE", "near"), timeout=5)
    for leaves, comes in (("DE", "FR"), ("FR", "DE")):
        await site["fra"].rows.MoveRow(move(leaves, "near", comes), timeout=5)
        assert await found(site, leaves, "near") is None
        row = await found(site, comes, "near")
        assert row is not None
        assert (row.region_code, dict(row.columns)) == (comes, columns())


async def test_no_write_ever_changes_a_rows_region_code(site: Site) -> None:
    rows = site["fra"].rows
    first = await rows.PutRow(put("DE", "stays"), timeout=5)
    # The same key under another RegionCode is another row: it is not updated, and does not replace the first one.
    elsewhere = put("FR", "stays", name="Other")
    elsewhere.if_version = first.receipt.version
    assert (await refusal(rows.PutRow(elsewhere, timeout=5)))[1] == "VERSION_CONFLICT"
    elsewhere.ClearField("if_version")
    await rows.PutRow(elsewhere, timeout=5)
    batch = pb.BatchWriteRowsRequest(dataset="customers")
    batch.writes.add(region_code="FR", key=key("stays")).put.columns["spend"].int64_value = 1
    await rows.BatchWriteRows(batch, timeout=5)
    await rows.DeleteRow(pb.DeleteRowRequest(dataset="customers", region_code="FR", key=key("stays")), timeout=5)
    row = await found(site, "DE", "stays")
    assert row is not None
    assert (row.version, dict(row.columns)) == (first.receipt.version, columns())
    # No message but MoveRow's names two RegionCodes, and no column can be called one.
    requests = {message.name: message for message in pb.DESCRIPTOR.message_types_by_name.values()}
    two = [
        name
        for name, message in requests.items()
        if sum(field.name.endswith("region_code") for field in message.fields) > 1
    ]
    assert two == ["MoveRowRequest"]
    named = put("DE", "stays")
    named.columns["region_code"].string_value = "FR"
    assert (await refusal(rows.PutRow(named, timeout=5)))[1] == "UNKNOWN_COLUMN"


@pytest.mark.parametrize(
    ("ingress", "to", "purpose", "rule", "why"),
    [
        ("fra", "SG", "", "asia", "who asks may not write at the new home"),
        ("sin", "SG", "entry", "europe", "who asks may not write at the old home"),
        ("fra", "SG", "entry", "europe", "the new home may not read the row"),
        ("fra", "SG", "support", "support", "the new home may not read the whole row"),
        ("fra", "CN", "relocation", "china", "who asks may not write at the new home"),
    ],
)
async def test_a_move_that_the_law_forbids_is_refused_by_rule_and_revision_and_changes_nothing(
    site: Site, ingress: str, to: str, purpose: str, rule: str, why: str
) -> None:
    text = f"forbidden-{ingress}-{to}-{purpose}"
    written = await site["fra"].rows.PutRow(put("DE", text), timeout=5)
    metadata = [(PURPOSE, purpose)] if purpose else []
    call = site[ingress].rows.MoveRow(move("DE", text, to), timeout=5, metadata=metadata)
    code, reason, details = await refusal(call)
    assert (code, reason, details["rule"]) == ("PERMISSION_DENIED", "ACCESS_DENIED", rule), why
    assert details["policy_revision"] == "1"
    row = await found(site, "DE", text)
    assert row is not None
    assert row.version == written.receipt.version
    assert await found(site, to, text) is None


@pytest.mark.parametrize(
    ("fields", "reason", "field_name"),
    [
        ({"dataset": "nothing"}, "UNKNOWN_DATASET", "dataset"),
        ({"region_code": "XX"}, "UNKNOWN_REGION", "region_code"),
        ({"region_code": ""}, "UNKNOWN_REGION", "region_code"),
        ({"to_region_code": "XX"}, "UNKNOWN_REGION", "to_region_code"),
        ({"to_region_code": ""}, "UNKNOWN_REGION", "to_region_code"),
        ({"to_region_code": "DE"}, "INVALID_VALUE", "to_region_code"),
        ({"key": key("")}, "INVALID_VALUE", "key"),
        ({"if_version": 0}, "INVALID_VALUE", "if_version"),
        ({"request_id": ""}, "INVALID_INPUT", "request_id"),
        ({"request_id": "ü"}, "INVALID_VALUE", "request_id"),
    ],
)
async def test_a_request_that_is_wrong_is_refused_by_the_name_of_its_field(
    site: Site, fields: dict[str, object], reason: str, field_name: str
) -> None:
    whole = {"dataset": "customers", "region_code": "DE", "key": key("k"), "to_region_code": "FR", "request_id": "r"}
    call = site["fra"].rows.MoveRow(pb.MoveRowRequest(**(whole | fields)), timeout=5)
    assert await refusal(call) == ("INVALID_ARGUMENT", reason, {"field_name": field_name})


async def test_no_row_another_version_or_a_row_in_the_way(site: Site) -> None:
    rows = site["fra"].rows
    assert (await refusal(rows.MoveRow(move("DE", "nobody", "FR"), timeout=5)))[:2] == ("NOT_FOUND", "ROW_NOT_FOUND")
    refused = await refusal(rows.MoveRow(move("DE", "nobody", "FR", if_version=3), timeout=5))
    assert refused[:2] == ("ABORTED", "VERSION_CONFLICT")
    written = await rows.PutRow(put("DE", "in-the-way"), timeout=5)
    version = written.receipt.version
    refused = await refusal(rows.MoveRow(move("DE", "in-the-way", "FR", if_version=version + 1), timeout=5))
    assert refused == ("ABORTED", "VERSION_CONFLICT", {"current": str(version)})
    await rows.PutRow(put("FR", "in-the-way", name="Theirs"), timeout=5)
    refused = await refusal(rows.MoveRow(move("DE", "in-the-way", "FR", if_version=version), timeout=5))
    assert refused[:2] == ("ALREADY_EXISTS", "ROW_EXISTS")
    row = await found(site, "DE", "in-the-way")
    assert row is not None
    assert row.version == version


async def test_a_repeated_request_gets_the_first_result_whatever_has_happened_since(site: Site) -> None:
    rows = site["fra"].rows
    await rows.PutRow(put("DE", "again"), timeout=5)
    request = move("DE", "again", "FR")
    first = await rows.MoveRow(request, timeout=5)
    assert (await rows.MoveRow(request, timeout=5)).receipt == first.receipt
    await rows.PutRow(put("DE", "again", name="Second"), timeout=5)
    assert (await rows.MoveRow(request, timeout=5)).receipt == first.receipt
    row = await found(site, "DE", "again")
    assert row is not None
    assert row.columns["name"].string_value == "Second"
    # Another request for the same is another move, and meets the first one's row.
    assert (await refusal(rows.MoveRow(move("DE", "again", "FR"), timeout=5)))[1] == "ROW_EXISTS"


async def test_a_region_without_transit_is_not_moved_through_another_jurisdiction(site: Site) -> None:
    await site["sha"].rows.PutRow(put("CN", "k"), timeout=5)
    refused = await refusal(site["fra"].rows.MoveRow(move("CN", "k", "DE"), timeout=5))
    assert refused[:2] == ("PERMISSION_DENIED", "ACCESS_DENIED")


async def test_steps_between_homes_are_not_for_clients_and_not_without_an_ingress(site: Site) -> None:
    from regiongate.v1 import shard_service_pb2
    from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub

    request = shard_service_pb2.ReceiveRowRequest(step=shard_service_pb2.ROW_MOVE_STEP_SETTLE, dataset="customers")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ShardServiceStub(site["fra"].channel).ReceiveRow(request, timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert (await refusal(site["fra"].shards.ReceiveRow(request, timeout=5)))[1] == "INVALID_INPUT"
