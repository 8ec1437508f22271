"""What an application sees, against gateways of the proto over real grpc."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

import regiongate
from gateway.client import ClientSettings
from policy.sharding import shard_of
from regiongate.errors import (
    AccessDenied,
    InvalidInput,
    InvalidValue,
    LimitReached,
    PeerUnreachable,
    RegiongateError,
    RowNotFound,
    UnknownRegion,
    VersionConflict,
)
from tests.integration.client.cluster import SHARDS, running
from tests.support.ports import free_port

ROW = {
    "name": "Ada",
    "spend": 12,
    "score": 3,
    "active": True,
    "photo": b"\x00\xff",
    "born": datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
    "balance": Decimal("-12.50"),
    "extra": {"tags": ["a", None], "n": 1.5},
}


def key_owned_by(world, idc: str) -> str:
    return next(key for key in map(str, range(1000)) if world.owner_of("DE", key) == idc)


async def test_a_row_comes_back_with_every_type_as_it_was_put():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        receipt = await client.put("customers", "DE", "k", ROW)
        row = await client.get("customers", "DE", "k")
    assert row.values == {**ROW, "score": 3.0, "born": datetime(1970, 1, 1, tzinfo=UTC)}
    assert isinstance(row.values["balance"], Decimal)
    assert (row.region_code, row.key, row.version) == ("DE", "k", receipt.version)
    assert row.update_time == receipt.update_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


async def test_null_is_none_in_a_column_of_any_type():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        await client.put("customers", "DE", "k", dict.fromkeys(ROW))
        assert (await client.get("customers", "DE", "k")).values == dict.fromkeys(ROW)


async def test_int64_keys_reach_their_shard_also_when_negative():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        for key in (0, 7, -7, 2**63 - 1, -(2**63)):
            await client.put("orders", "DE", key, {"name": "x"})
            assert (await client.get("orders", "DE", key)).key == key
        assert {asked.idc for asked in sites["fra"].world.asked} == {"fra", "ams"}


async def test_answers_and_refusals_name_the_rule_and_the_revision_law_l7():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        await client.put("customers", "DE", "k", {"spend": 1})
        row = await client.get("customers", "DE", "k", purpose="support")
        assert (row.decision.rule, row.decision.policy_revision) == ("europe", 7)
        assert (row.decision.asking_jurisdiction, row.decision.withheld) == ("SG", ("name",))
        with pytest.raises(AccessDenied) as denied:
            await client.get("customers", "CN", "k")
        assert (denied.value.rule, denied.value.policy_revision) == ("china", 7)


async def test_calls_go_straight_to_the_owner_and_state_where_they_come_from_law_l6():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        world = sites["sin"].world
        for idc in ("fra", "ams"):
            await client.put("customers", "DE", key_owned_by(world, idc), {"name": "x"}, purpose="sales")
        await client.put("customers", "SG", "k", {"name": "x"})
    assert [(a.idc, a.origin, a.purpose) for a in world.asked] == [
        ("fra", "sin", "sales"),
        ("ams", "sin", "sales"),
        ("sin", "", ""),
    ]


async def test_without_direct_everything_enters_at_home():
    async with running() as sites, regiongate.connect(sites["sin"].address, direct=False) as client:
        await client.put("customers", "DE", "k", {"name": "x"})
        assert [(a.idc, a.origin) for a in sites["sin"].world.asked] == [("sin", "")]


async def test_if_version_conflicts_name_the_current_version():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        first = await client.put("customers", "DE", "k", {"spend": 1}, if_version=0)
        second = await client.put("customers", "DE", "k", {"spend": 2}, if_version=first.version)
        with pytest.raises(VersionConflict) as conflict:
            await client.delete("customers", "DE", "k", if_version=first.version)
        assert conflict.value.current == second.version
        await client.delete("customers", "DE", "k", if_version=second.version)
        with pytest.raises(RowNotFound):
            await client.get("customers", "DE", "k")


async def test_bad_input_is_refused_by_class_and_not_repeated_law_l8():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        world = sites["fra"].world
        with pytest.raises(UnknownRegion):
            await client.get("customers", "XX", "k")
        assert len(world.asked) == 1
        for key in (True, 2**63, None, 1.5, "\ud800"):
            with pytest.raises(InvalidValue):
                await client.get("customers", "DE", key)
        assert len(world.asked) == 1


async def test_many_calls_at_once_share_messages():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        world = sites["fra"].world
        keys = [key for key in map(str, range(2000)) if world.owner_of("DE", key) == "fra"][:640]
        await asyncio.gather(*(client.put("customers", "DE", key, {"spend": 1}) for key in keys))
        rows = await asyncio.gather(*(client.get("customers", "DE", key) for key in keys))
        assert [row.key for row in rows] == keys
        assert world.messages["fra"] < 2 * len(keys) / 16
        assert sites["fra"].streams == 1


async def test_calls_of_different_purposes_never_share_a_message():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        world = sites["fra"].world
        key = key_owned_by(world, "fra")
        await client.put("customers", "DE", key, {"spend": 1})
        world.asked.clear()
        purposes = ["support", "billing", ""] * 20
        await asyncio.gather(*(client.get("customers", "DE", key, purpose=purpose) for purpose in purposes))
        assert sorted(asked.purpose for asked in world.asked) == sorted(purposes)


async def test_a_call_that_is_cancelled_leaves_the_others_alone():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        await client.put("customers", "DE", "k", {"spend": 1})
        sites["fra"].works.clear()
        sites["ams"].works.clear()
        given_up = asyncio.create_task(client.get("customers", "DE", "k"))
        kept = asyncio.create_task(client.get("customers", "DE", "k"))
        await asyncio.sleep(0)
        given_up.cancel()
        sites["fra"].works.set()
        sites["ams"].works.set()
        assert (await kept).values["spend"] == 1
        with pytest.raises(asyncio.CancelledError):
            await given_up


async def test_listing_goes_through_all_pages_in_key_order():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        keys = sorted(f"k{number:03}" for number in range(25))
        for key in keys:
            await client.put("customers", "DE", key, {"spend": 1})
        assert [row.key async for row in client.list("customers", "DE", page_size=10)] == keys
        page = await client.list_page("customers", "DE", page_size=10)
        assert len(page.rows) == 10
        assert page.next_page_token


async def test_a_listing_that_lacks_an_idc_fails_unless_partial_ones_are_asked_for_law_l8():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        await client.put("customers", "DE", "k", {"spend": 1})
        sites["fra"].unreachable = ["ams"]
        with pytest.raises(PeerUnreachable, match="ams"):
            [row async for row in client.list("customers", "DE")]
        assert [row.key async for row in client.list("customers", "DE", allow_partial=True)] == ["k"]
        assert (await client.list_page("customers", "DE")).unreachable == ("ams",)


async def test_a_batch_is_split_by_owner_and_answered_in_order_each_by_itself():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        world = sites["sin"].world
        writes = [regiongate.Put(region, str(n), {"spend": n}) for n in range(40) for region in ("DE", "SG", "CN")]
        results = await client.batch_write("customers", writes, purpose="load")
        for write, result in zip(writes, results, strict=True):
            assert isinstance(result, AccessDenied if write.region_code == "CN" else regiongate.Receipt)
        assert {(a.idc, a.origin, a.purpose) for a in world.asked} == {
            ("fra", "sin", "load"),
            ("ams", "sin", "load"),
            ("sha", "sin", "load"),
            ("sin", "", "load"),
        }
        assert len({a.request_id for a in world.asked}) == 1
        rows = await client.batch_get("customers", [("DE", "3"), ("DE", "none"), ("SG", "4")], columns=["spend"])
        assert [type(row) for row in rows] == [regiongate.Row, RowNotFound, regiongate.Row]
        assert rows[2].values == {"spend": 4}
        deleted = await client.batch_write("customers", [regiongate.Delete("DE", "3")])
        assert isinstance(deleted[0], regiongate.Receipt)


async def test_a_batch_above_a_thousand_goes_as_several_each_with_a_request_of_its_own():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        writes = [regiongate.Put("SG", str(n), {"spend": n}) for n in range(2500)]
        results = await client.batch_write("customers", writes)
        assert all(isinstance(result, regiongate.Receipt) for result in results)
        asked = sites["sin"].world.asked
        assert len(asked) == len({a.request_id for a in asked}) == 3
        with pytest.raises(LimitReached):
            await client.batch_write("customers", writes, request_id="one")


async def test_large_rows_are_spread_over_calls_and_one_that_is_too_large_harms_nobody():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        large = "x" * (1 << 20)
        others = [asyncio.create_task(client.get("customers", "SG", str(n))) for n in range(10)]
        for size in (3 << 20, 70 << 20):
            with pytest.raises(LimitReached) as refused:
                await client.put("customers", "SG", "k", {"name": "x" * size})
            assert refused.value.limit == "row_bytes"
        for outcome in await asyncio.gather(*others, return_exceptions=True):
            assert isinstance(outcome, RowNotFound)
        await asyncio.gather(*(client.put("customers", "SG", str(n), {"name": large}) for n in range(10)))
        sites["sin"].world.asked.clear()
        writes = [regiongate.Put("SG", str(n), {"name": large}) for n in range(10)]
        results = await client.batch_write("customers", writes)
        assert all(isinstance(result, regiongate.Receipt) for result in results)
        assert len(sites["sin"].world.asked) == 5
        with pytest.raises(LimitReached):
            await client.batch_write("customers", writes, request_id="one")
        rows = [row async for row in client.list("customers", "SG")]
        assert {len(row.values["name"]) for row in rows} == {1 << 20}


async def test_a_value_that_does_not_fit_stops_a_batch_before_anything_is_written():
    async with running() as sites, regiongate.connect(sites["sin"].address) as client:
        with pytest.raises(InvalidValue) as refused:
            await client.batch_write(
                "customers", [regiongate.Put("SG", "a", {"spend": 1}), regiongate.Put("SG", "b", {"spend": "marker"})]
            )
        assert "marker" not in str(refused.value)
        assert not sites["sin"].world.rows


async def test_routes_are_watched_from_a_snapshot_on():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        changes = client.watch_routes()
        first = await anext(changes)
        assert (first.is_snapshot, first.home_idc, len(first.routes)) == (True, "fra", 3 * SHARDS)
        sites["fra"].world.move("DE", shard_of("k", SHARDS), "ams")
        second = await asyncio.wait_for(anext(changes), 5)
        assert not second.is_snapshot
        assert second.store_revision > first.store_revision
        assert any(route.idc == "ams" and route.shard == shard_of("k", SHARDS) for route in second.routes)


async def test_a_subscriber_that_is_slow_gets_one_snapshot_in_place_of_many_changes():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        slow, fast = client.watch_routes(), client.watch_routes()
        await anext(slow)
        await anext(fast)
        for _ in range(100):
            sites["fra"].world.tell()
        revision = sites["fra"].world.revision
        while (await asyncio.wait_for(anext(fast), 5)).store_revision < revision:
            pass
        late = await anext(slow)
        assert (late.is_snapshot, late.store_revision) == (True, revision)


async def test_a_subscriber_is_told_when_the_client_closes():
    async with running() as sites:
        async with regiongate.connect(sites["fra"].address) as client:
            changes = client.watch_routes()
            await anext(changes)
        with pytest.raises(RegiongateError, match="closed"):
            await anext(changes)


async def test_the_datasets_are_known_to_the_client():
    async with running() as sites, regiongate.connect(sites["fra"].address) as client:
        assert client.home_idc == "fra"
        assert client.datasets["orders"].key_type == "int64"
        assert client.datasets["customers"].column_types["extra"] == "json"


async def test_a_target_where_nobody_listens_is_told_in_time():
    port = free_port()
    settings = ClientSettings(connect_timeout=timedelta(seconds=0.3))
    with pytest.raises(PeerUnreachable, match=f"127.0.0.1:{port}"):
        async with regiongate.connect(f"127.0.0.1:{port}", settings=settings):
            pass


@pytest.mark.parametrize("target", ["", "localhost", "a:b", "a:0", ":7000", "a:70000"])
async def test_a_target_that_is_none_is_refused(target):
    with pytest.raises(InvalidInput):
        async with regiongate.connect(target):
            pass
