import pytest

from policy.errors import InvalidValue, ShardUnavailable, UnknownRegion
from policy.model import Phase
from policy.sharding import shard_of
from policy.table import RoutingTable
from tests.unit.policy.documents import bend, compiled, full_table, serving


def test_a_key_resolves_to_the_owner_of_its_shard():
    table = full_table(compiled())
    route = table.resolve("DE", "Zürich")
    assert (route.region_code, route.shard, route.idc, route.epoch) == ("DE", shard_of("Zürich", 8), "fra", 1)
    assert table.resolve("DE", -1).shard == 7


def test_nothing_is_resolved_that_has_no_owner_l8():
    policy = compiled()
    table = RoutingTable.build(policy, [("DE", 0, serving("fra"))], 1)
    with pytest.raises(ShardUnavailable, match="shard 1 of DE"):
        table.resolve("DE", 1)
    with pytest.raises(UnknownRegion):
        table.resolve("JP", 1)
    with pytest.raises(UnknownRegion):
        table.resolve("", 1)
    with pytest.raises(InvalidValue):
        table.resolve("DE", "\ud800")


@pytest.mark.parametrize("record", [serving("fra", phase="levitating"), serving("")])
def test_a_record_that_cannot_be_read_gives_no_route_l8(record):
    table = RoutingTable.build(compiled(), [("DE", 0, record)], 1)
    assert table.route("DE", 0) is None


def test_a_patch_changes_what_changed_and_shares_the_rest():
    table = full_table(compiled())
    patched = table.patch(store_revision=11, shards=[("DE", 3, serving("ams", 2, "opening"))])
    assert table.route("DE", 3).idc == "fra"
    assert (patched.route("DE", 3).idc, patched.route("DE", 3).epoch) == ("ams", 2)
    assert patched.route("DE", 3).phase is Phase.OPENING
    assert patched.route("DE", 4) is table.route("DE", 4)
    assert patched.routes_of("AT") is table.routes_of("AT")
    assert (patched.store_revision, patched.refused) == (11, 0)


def test_a_lower_epoch_is_refused_and_counted_l2():
    table = full_table(compiled()).patch(store_revision=11, shards=[("DE", 3, serving("ams", 2))])
    older = table.patch(store_revision=12, shards=[("DE", 3, serving("fra", 1))])
    assert older.route("DE", 3).idc == "ams"
    assert older.refused == 1


def test_an_older_store_or_policy_revision_is_refused_l6():
    table = full_table(compiled(revision=7))
    assert table.patch(store_revision=9, shards=[("DE", 3, serving("ams", 2))]).route("DE", 3).idc == "fra"
    older = table.patch(store_revision=11, policy=compiled(revision=6))
    assert (older.policy.revision, older.store_revision, older.refused) == (7, 11, 1)


def test_a_new_policy_brings_its_regions_and_keeps_the_known_routes():
    table = full_table(compiled())
    wider = compiled(bend(("[SG, MY]", "[SG, MY, JP]")), 8)
    patched = table.patch(store_revision=11, policy=wider)
    assert patched.routes_of("JP") == (None,) * 16
    assert patched.routes_of("DE") is table.routes_of("DE")
    narrower = compiled(bend(("[SG, MY]", "[SG]")), 9)
    with pytest.raises(UnknownRegion):
        patched.patch(store_revision=12, policy=narrower).routes_of("MY")


def test_records_that_come_before_their_policy_are_not_lost():
    early = full_table(compiled()).patch(store_revision=11, shards=[("JP", 0, serving("sin"))])
    assert early.route("JP", 0) is None
    assert early.record("JP", 0) == serving("sin")
    wider = compiled(bend(("[SG, MY]", "[SG, MY, JP]")), 8)
    assert early.patch(store_revision=12, policy=wider).route("JP", 0).idc == "sin"


def test_a_deleted_record_leaves_no_route():
    table = full_table(compiled()).patch(store_revision=11, shards=[("DE", 3, None)])
    assert table.route("DE", 3) is None
    assert len(list(table.all_routes())) == sum(rule.shards for rule in table.policy.regions.values()) - 1
