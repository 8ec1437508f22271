"""A listing is one RegionCode, in key order, over all its owners, and says whose rows are missing."""

from __future__ import annotations

import pytest
import pytest_asyncio

from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import types_pb2
from tests.support.gateways import EUROPE, Site, refusal, running_gateway, running_site, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = sorted([f"key-{number:03d}" for number in range(120)] + ["ä", "zebra", "😀", "ￜ", "A"])
SUPPORT = [("x-regiongate-purpose", "support")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server) as running:
        for region in ("DE", "FR"):
            await fill(running, region)
        yield running


async def fill(site: Site, region: str) -> None:
    writes = [
        pb.RowWrite(
            region_code=region,
            key=types_pb2.Key(string_key=key),
            put=pb.RowContent(
                columns={
                    "name": types_pb2.Value(string_value=f"{region}-{key}"),
                    "spend": types_pb2.Value(int64_value=number),
                }
            ),
        )
        for number, key in enumerate(KEYS)
    ]
    response = await site["fra"].rows.BatchWriteRows(
        pb.BatchWriteRowsRequest(dataset="customers", writes=writes), timeout=10
    )
    assert not [result.error.reason for result in response.results if result.HasField("error")]


def listing(region: str = "DE", **fields: object) -> pb.ListRowsRequest:
    return pb.ListRowsRequest(dataset="customers", region_code=region, **fields)


async def pages(site: Site, idc: str, request: pb.ListRowsRequest, **options: object) -> list[pb.ListRowsResponse]:
    found: list[pb.ListRowsResponse] = []
    while True:
        found.append(await site[idc].rows.ListRows(request, timeout=10, **options))
        request.page_token = found[-1].next_page_token
        if not request.page_token:
            return found


def keys_of(found: list[pb.ListRowsResponse]) -> list[str]:
    return [row.key.string_key for page in found for row in page.rows]


@pytest.mark.parametrize("page_size", [1, 7, 100, 125, 1000])
async def test_pages_of_any_size_give_every_row_once_and_in_order(site: Site, page_size: int):
    found = await pages(site, "fra", listing(page_size=page_size))
    assert keys_of(found) == KEYS
    assert all(len(page.rows) <= page_size for page in found)
    assert all(not page.unreachable for page in found)


async def test_a_listing_is_never_wider_than_its_region(site: Site):
    found = await pages(site, "ams", listing("FR"))
    assert {row.region_code for page in found for row in page.rows} == {"FR"}
    assert all(row.columns["name"].string_value.startswith("FR-") for page in found for row in page.rows)


async def test_a_filter_chooses_and_pages_go_on_over_what_it_leaves_out(site: Site):
    found = await pages(site, "fra", listing(filter="spend >= 10 AND spend < 20", page_size=3))
    assert keys_of(found) == KEYS[10:20]


async def test_columns_that_are_asked_for_are_the_only_ones(site: Site):
    (first, *_) = await pages(site, "fra", listing(columns=["spend"]))
    assert all(list(row.columns) == ["spend"] for row in first.rows)


async def test_across_a_border_a_listing_withholds_and_says_so(site: Site):
    found = await pages(site, "sin", listing(page_size=50), metadata=SUPPORT)
    assert keys_of(found) == KEYS
    assert all(list(row.columns) == ["spend"] for page in found for row in page.rows)
    assert {page.decision.rule for page in found} == {"eu-support"}
    assert list(found[0].decision.withheld) == ["name"]


async def test_a_filter_on_a_withheld_column_is_denied_because_it_would_tell_the_value(site: Site):
    call = site["sin"].rows.ListRows(listing(filter='name = "DE-A"'), timeout=5, metadata=SUPPORT)
    code, reason, metadata = await refusal(call)
    assert (code, reason, metadata["rule"]) == ("PERMISSION_DENIED", "ACCESS_DENIED", "eu-support")


async def test_across_a_border_without_a_rule_nothing_is_listed(site: Site):
    assert (await refusal(site["sin"].rows.ListRows(listing(), timeout=5)))[1] == "ACCESS_DENIED"


async def test_a_region_without_transit_is_listed_at_its_owner_only(site: Site):
    audit = [("x-regiongate-purpose", "audit")]
    code, reason, metadata = await refusal(site["fra"].rows.ListRows(listing("CN"), timeout=5, metadata=audit))
    assert (code, reason, metadata["owner_idc"]) == ("FAILED_PRECONDITION", "NOT_OWNED_HERE", "sha")


async def test_a_token_is_good_for_its_own_listing_only(site: Site):
    token = (await site["fra"].rows.ListRows(listing(page_size=5), timeout=5)).next_page_token
    for other in (listing("FR"), listing(filter="spend > 1"), listing(columns=["spend"])):
        other.page_token = token
        assert (await refusal(site["fra"].rows.ListRows(other, timeout=5)))[1] == "INVALID_PAGE_TOKEN"


async def test_a_token_goes_on_through_another_gateway(site: Site):
    first = await site["fra"].rows.ListRows(listing(page_size=60), timeout=5)
    rest = await pages(site, "ams", listing(page_size=60, page_token=first.next_page_token))
    assert keys_of([first, *rest]) == KEYS


async def test_large_rows_end_a_page_early_and_none_is_lost(site: Site):
    places = [f"large-{number}" for number in range(6)]
    for place in places:
        value = {"name": types_pb2.Value(string_value="x" * 600_000)}
        request = pb.PutRowRequest(
            dataset="customers", region_code="SG", key=types_pb2.Key(string_key=place), columns=value
        )
        await site["sin"].rows.PutRow(request, timeout=5)
    found = await pages(site, "sin", listing("SG"))
    assert keys_of(found) == places
    assert all(page.ByteSize() < 2_500_000 for page in found)
    assert len(found) > 1


async def test_an_idc_that_is_down_is_named_and_the_others_rows_are_listed(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server, "fra", policy="") as site:
        async with running_gateway(site, "ams") as ams:
            await until(lambda: ams.gateway.is_open)
            await site.apply(EUROPE, "fra")
            await fill(site, "DE")
        gateway = site["fra"].gateway
        await until(lambda: "ams" not in gateway.view.gateways)
        found = await pages(site, "fra", listing(page_size=10))
        assert all(list(page.unreachable) == ["ams"] for page in found)
        listed = keys_of(found)
        assert 0 < len(listed) < len(KEYS)
        assert listed == [key for key in KEYS if key in set(listed)]
        missing = next(key for key in KEYS if key not in listed)
        read = pb.GetRowRequest(dataset="customers", region_code="DE", key=types_pb2.Key(string_key=missing))
        assert (await refusal(site["fra"].rows.GetRow(read, timeout=10)))[:2] == ("UNAVAILABLE", "PEER_UNREACHABLE")
