"""The client's picture of the routes."""

from __future__ import annotations

import pytest

from gateway.client.routes import HOME, Routes
from policy.errors import InvalidValue, ShardUnavailable, UnknownRegion
from policy.sharding import shard_of
from regiongate.v1.routing_service_pb2 import WatchRoutesResponse


def snapshot(**words: object) -> WatchRoutesResponse:
    news = WatchRoutesResponse(snapshot=True, policy_revision=1, store_revision=10, home_idc="sin", **words)
    news.regions.add(region_code="DE", shards=4)
    for shard in range(3):
        news.routes.add(region_code="DE", shard=shard, idc="fra", epoch=1, phase="serving")
    news.idcs.add(idc="fra", jurisdiction="EU", endpoints=["fra:1", "fra:2"])
    news.datasets.add(dataset="customers", key_type="string", column_types={"name": "string"})
    return news


def key_in(shard: int) -> str:
    return next(key for key in map(str, range(100)) if shard_of(key, 4) == shard)


def test_a_key_goes_to_its_shards_owner_and_home_where_that_is_not_known():
    routes = Routes()
    assert routes.next_hop("DE", "k") == HOME
    routes.apply(snapshot())
    assert [routes.next_hop("DE", key_in(shard)) for shard in range(4)] == ["fra", "fra", "fra", HOME]
    assert routes.next_hop("XX", "k") == HOME
    assert routes.endpoints_of("fra") == ("fra:1", "fra:2")


def test_the_owner_of_a_row_is_told_at_once_and_never_guessed():
    """Law L8."""
    routes = Routes(direct=False)
    routes.apply(snapshot())
    owner = routes.owner_of("DE", key_in(1))
    assert (owner.idc, owner.shard, owner.epoch) == ("fra", 1, 1)
    with pytest.raises(ShardUnavailable):
        routes.owner_of("DE", key_in(3))
    with pytest.raises(UnknownRegion):
        routes.owner_of("XX", "k")


def test_news_replace_what_they_name_and_a_snapshot_replaces_everything():
    routes = Routes()
    routes.apply(snapshot())
    news = WatchRoutesResponse(policy_revision=2, store_revision=11)
    news.routes.add(region_code="DE", shard=0, idc="ams", epoch=2, phase="serving")
    news.idcs.add(idc="ams", endpoints=["ams:1"])
    change = routes.apply(news)
    assert (change.is_snapshot, change.store_revision, change.home_idc, len(change.routes)) == (False, 11, "sin", 1)
    assert [routes.next_hop("DE", key_in(shard)) for shard in (0, 1)] == ["ams", "fra"]
    assert routes.endpoints_of("fra")
    assert len(routes.snapshot().routes) == 3
    routes.apply(WatchRoutesResponse(snapshot=True, store_revision=12))
    assert routes.next_hop("DE", key_in(1)) == HOME
    assert not routes.endpoints_of("fra")
    assert not routes.datasets()


def test_an_owner_that_was_named_holds_until_the_next_news_of_the_shard():
    routes = Routes()
    routes.apply(snapshot())
    key = key_in(1)
    routes.learn("DE", key, "ams", ["ams:1"])
    assert (routes.next_hop("DE", key), routes.endpoints_of("ams")) == ("ams", ("ams:1",))
    assert routes.next_hop("DE", key_in(2)) == "fra"
    news = WatchRoutesResponse(store_revision=11)
    news.routes.add(region_code="DE", shard=1, idc="fra", epoch=3, phase="serving")
    routes.apply(news)
    assert routes.next_hop("DE", key) == "fra"


def test_nothing_is_learnt_of_a_region_that_is_not_known():
    routes = Routes()
    routes.learn("DE", "k", "ams", ["ams:1"])
    assert routes.next_hop("DE", "k") == HOME


def test_a_client_that_does_not_go_direct_goes_home_except_where_it_was_sent_away():
    routes = Routes(direct=False)
    routes.apply(snapshot())
    assert routes.next_hop("DE", key_in(1)) == HOME
    routes.learn("DE", key_in(1), "fra", ())
    assert routes.next_hop("DE", key_in(1)) == "fra"


def test_the_routes_are_one_shard_for_a_key_whatever_the_language_law_l4():
    routes = Routes()
    routes.apply(snapshot())
    assert routes.shard_of("DE", "k") == shard_of("k", 4)
    assert routes.shard_of("XX", "k") == 0


def test_a_key_that_is_not_unicode_is_refused():
    routes = Routes()
    routes.apply(snapshot())
    with pytest.raises(InvalidValue):
        routes.next_hop("DE", "\ud800")


def test_a_shard_on_the_move_is_asked_for_at_its_owner_and_from_the_switch_on_at_the_new_one():
    routes = Routes()
    routes.apply(snapshot())
    way = [("fra", 1, "copying"), ("fra", 1, "draining"), ("fra", 1, "closing"), ("ams", 2, "opening")]
    for revision, (idc, epoch, phase) in enumerate([*way, ("ams", 2, "purging"), ("ams", 2, "serving")], 11):
        news = WatchRoutesResponse(policy_revision=1, store_revision=revision)
        news.routes.add(region_code="DE", shard=0, idc=idc, epoch=epoch, phase=phase)
        routes.apply(news)
        assert routes.next_hop("DE", key_in(0)) == idc
        assert (routes.owner_of("DE", key_in(0)).epoch, routes.owner_of("DE", key_in(0)).phase) == (epoch, phase)
