"""Shard sets, made of the news of routes."""

from __future__ import annotations

import pytest

from gateway.client.model import RouteChange, ShardOwner
from gateway.client.ownership import OwnedShards
from policy.errors import InvalidValue, UnknownRegion
from policy.sharding import shard_of

COUNTS = {"DE": 4, "FR": 2}


def told(*owners: tuple[str, int, str, int, str], is_snapshot: bool = False, home: str = "fra", revision: int = 1):
    return RouteChange(is_snapshot, revision, 10, home, tuple(ShardOwner(*owner) for owner in owners))


def whole(*, home: str = "fra", **words: int) -> RouteChange:
    owners = [("DE", n, "fra" if n < 2 else "ams", 1, "serving") for n in range(4)]
    return told(*owners, ("FR", 0, "fra", 1, "serving"), is_snapshot=True, home=home, **words)


def following(*regions: str) -> OwnedShards:
    owned = OwnedShards(frozenset(regions))
    assert owned.take(whole(), COUNTS)
    return owned


def key_in(shard: int) -> str:
    return next(key for key in map(str, range(100)) if shard_of(key, 4) == shard)


def test_a_set_holds_what_the_home_idc_owns():
    owned = following().newest
    assert (owned.idc, owned.policy_revision) == ("fra", 1)
    assert list(owned) == [("DE", 0), ("DE", 1), ("FR", 0)]
    assert ("DE", 1) in owned
    assert ("DE", 2) not in owned
    assert [owned.owns("DE", key_in(shard)) for shard in range(4)] == [True, True, False, False]


def test_a_set_holds_only_the_regions_that_are_wanted():
    owned = following("FR").newest
    assert list(owned) == [("FR", 0)]
    assert not owned.owns("DE", key_in(0))


def test_what_no_rule_covers_is_owned_by_nobody_and_said_to_be_an_error():
    """Law L8."""
    owned = following().newest
    with pytest.raises(UnknownRegion):
        owned.owns("XX", "k")
    with pytest.raises(InvalidValue):
        owned.owns("DE", "\ud800")


@pytest.mark.parametrize("phase", ["copying", "purging", "aborting"])
def test_a_shard_that_may_still_be_written_here_stays_in_the_same_set(phase):
    owned = following()
    before = owned.newest
    assert not owned.take(told(("DE", 1, "fra", 1, phase)), None)
    assert owned.newest is before


@pytest.mark.parametrize("phase", ["draining", "closing", "opening"])
def test_a_shard_that_may_not_be_written_here_is_in_no_set(phase):
    owned = following()
    assert owned.take(told(("DE", 1, "fra", 1, phase)), None)
    assert list(owned.newest) == [("DE", 0), ("FR", 0)]


def test_a_set_never_changes_itself():
    owned = following()
    before = owned.newest
    assert owned.take(told(("DE", 0, "ams", 2, "serving")), None)
    assert before.owns("DE", key_in(0))
    assert not owned.newest.owns("DE", key_in(0))


def test_news_of_other_idcs_change_no_set():
    owned = following()
    assert not owned.take(told(("DE", 2, "ber", 2, "serving")), None)


def test_a_shard_that_was_elsewhere_in_between_makes_another_set():
    owned = following()
    before = owned.newest
    assert owned.take(told(("DE", 0, "fra", 3, "serving")), None)
    assert owned.newest is not before
    assert list(owned.newest) == list(before)


def test_a_gateway_that_is_behind_brings_no_shard_back():
    owned = following()
    owned.take(told(("DE", 0, "ams", 2, "serving")), None)
    assert not owned.take(whole(), COUNTS)
    assert ("DE", 0) not in owned.newest


def test_another_policy_that_leaves_the_shards_as_they_are_makes_no_other_set():
    owned = following()
    assert not owned.take(whole(revision=2), dict(COUNTS))
    assert owned.take(whole(revision=3), {**COUNTS, "BE": 4})
    assert (owned.newest.policy_revision, owned.newest.owns("BE", "k")) == (3, False)


def test_a_snapshot_replaces_everything():
    owned = following()
    assert owned.take(told(("DE", 0, "fra", 1, "serving"), is_snapshot=True), COUNTS)
    assert list(owned.newest) == [("DE", 0)]
    assert owned.take(told(is_snapshot=True, revision=0), {})
    assert list(owned.newest) == []


def test_a_gateway_of_another_idc_makes_it_that_ones_shards():
    owned = following()
    assert owned.take(whole(home="ams"), COUNTS)
    assert (owned.newest.idc, list(owned.newest)) == ("ams", [("DE", 2), ("DE", 3)])
