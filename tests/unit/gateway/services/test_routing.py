"""A watcher of routes is told everything once, then only what has changed."""

from __future__ import annotations

from gateway.routing_service import ROUTES_PER_MESSAGE, Sent
from policy.records import ShardRecord
from tests.support.routing import gateway, policy, table

LIVE = {"fra": (gateway("fra", address="127.0.0.1:70"),)}


def moved(epoch: int = 2) -> ShardRecord:
    return ShardRecord(owner="ams", epoch=epoch, phase="serving", policy_revision=1)


def test_the_first_message_is_a_snapshot_of_everything():
    known = table()
    (message,) = Sent("sin").update(known, LIVE)
    assert message.snapshot
    assert message.home_idc == "sin"
    assert (message.policy_revision, message.store_revision) == (known.policy.revision, known.store_revision)
    assert len(message.routes) == len(list(known.all_routes()))
    assert {entry.idc: list(entry.endpoints) for entry in message.idcs}["fra"] == ["127.0.0.1:70"]
    assert {entry.idc for entry in message.idcs} == set(known.policy.idcs)
    assert {entry.region_code for entry in message.regions} == set(known.policy.regions)
    customers = next(entry for entry in message.datasets if entry.dataset == "customers")
    assert customers.key_type == "string"
    assert customers.column_types["spend"] == "int64"


def test_a_shard_that_moves_is_told_alone():
    known = table()
    sent = Sent("sin")
    list(sent.update(known, LIVE))
    (message,) = sent.update(known.patch(store_revision=11, shards=[("DE", 1, moved())]), LIVE)
    assert not message.snapshot
    assert [(route.region_code, route.shard, route.idc, route.epoch) for route in message.routes] == [
        ("DE", 1, "ams", 2)
    ]
    assert not message.idcs
    assert message.store_revision == 11


def test_a_gateway_that_comes_or_goes_is_told_alone():
    known = table()
    sent = Sent("sin")
    list(sent.update(known, LIVE))
    (message,) = sent.update(known, {})
    assert not message.routes
    assert [(entry.idc, list(entry.endpoints)) for entry in message.idcs] == [("fra", [])]


def test_nothing_is_told_when_nothing_differs():
    known = table()
    sent = Sent("sin")
    list(sent.update(known, LIVE))
    assert not list(sent.update(known.patch(store_revision=12), dict(LIVE)))


def test_another_policy_is_a_new_snapshot():
    known = table()
    sent = Sent("sin")
    list(sent.update(known, LIVE))
    (message,) = sent.update(table(policy(revision=known.policy.revision + 1), store_revision=11), LIVE)
    assert message.snapshot


def test_before_the_first_policy_a_watcher_learns_its_home_and_later_the_routes():
    sent = Sent("sin")
    (empty,) = sent.update(None, {})
    assert (empty.snapshot, empty.home_idc, list(empty.routes)) == (True, "sin", [])
    assert not list(sent.update(None, {}))
    (full,) = sent.update(table(), LIVE)
    assert full.snapshot
    assert full.routes


def test_what_is_too_much_for_one_message_is_a_snapshot_and_its_continuation():
    sent = Sent("sin")
    known = table()
    routes = list(known.all_routes()) * (ROUTES_PER_MESSAGE // 4)
    messages = list(sent._messages(known, routes, [], is_snapshot=True))
    assert [message.snapshot for message in messages] == [True] + [False] * (len(messages) - 1)
    assert sum(len(message.routes) for message in messages) == len(routes)
