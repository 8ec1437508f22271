from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionjobs.slots import Slots

REGIONS = ["DE", "FR", "SG"]
SHARDS = st.lists(st.tuples(st.sampled_from(REGIONS), st.integers(0, 5)), max_size=20)


def shards(region, count):
    return [(region, number) for number in range(count)]


def fill(slots, waiting, busy=None, regions=()):
    """Starts what may be started; returns it in order, and what is at work then."""
    busy = Counter(busy or {})
    slots.wait(waiting)
    started = []
    while (shard := slots.take(busy, regions)) is not None:
        started.append(shard)
        busy[shard[0]] += 1
    return started, busy


def test_nothing_waits_so_nothing_starts():
    assert Slots(4).choose([], {}) is None


def test_a_regioncode_alone_gets_every_slot():
    started, _ = fill(Slots(4), shards("DE", 9))
    assert started == shards("DE", 4)


def test_a_regioncode_gets_half_of_the_slots_while_another_has_work():
    started, busy = fill(Slots(8), [*shards("DE", 9), *shards("FR", 1)])
    assert busy == {"DE": 4, "FR": 1}
    assert len(started) == 5


def test_a_regioncode_that_is_at_work_counts_as_one_that_has_work():
    assert Slots(4).choose(shards("DE", 9), {"FR": 1, "DE": 2}) is None
    assert Slots(4).choose(shards("DE", 9), {"FR": 0, "DE": 2}) == ("DE", 0)


def test_one_slot_is_left_for_others_of_the_share_that_have_no_work_yet():
    slots = Slots(4)
    _, busy = fill(slots, shards("DE", 9), regions=["DE", "FR"])
    assert busy == {"DE": 3}
    assert slots.choose([*shards("DE", 9), ("FR", 0)], busy, ["DE", "FR"]) == ("FR", 0)


def test_a_share_of_one_regioncode_leaves_no_slot_idle():
    _, busy = fill(Slots(4), shards("DE", 9), regions=["DE"])
    assert busy == {"DE": 4}


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_few_slots_are_used_too(concurrency):
    started, _ = fill(Slots(concurrency), [*shards("DE", 3), *shards("FR", 3)], regions=REGIONS)
    assert len(started) == min(concurrency, 2)


def test_the_regioncode_with_the_fewest_at_work_is_next():
    assert Slots(8).choose([*shards("DE", 3), *shards("FR", 3)], {"DE": 2, "FR": 1}) == ("FR", 0)


def test_regioncodes_take_turns_in_one_slot():
    slots = Slots(1)
    waiting = [*shards("DE", 9), *shards("FR", 9), *shards("SG", 9)]
    order = [slots.choose(waiting, {})[0] for _ in range(9)]
    assert order == ["DE", "FR", "SG"] * 3


def test_shards_of_a_regioncode_take_turns_though_all_have_work_for_ever():
    slots = Slots(1)
    order = [slots.choose(shards("DE", 3), {}) for _ in range(6)]
    assert order == shards("DE", 3) * 2


def test_a_shard_that_waits_no_more_is_not_started():
    slots = Slots(2)
    slots.wait(shards("DE", 3))
    slots.wait([("DE", 2)])
    assert slots.take({}) == ("DE", 2)
    assert slots.take({}) is None


@given(st.integers(1, 9), SHARDS, st.dictionaries(st.sampled_from(REGIONS), st.integers(0, 3)))
def test_whatever_waits_slots_are_never_exceeded_and_nothing_starts_twice(concurrency, waiting, busy):
    started, after = fill(Slots(concurrency), waiting, busy, REGIONS)
    assert len(started) == len(set(started)) <= max(0, concurrency - sum(busy.values()))
    assert set(started) <= set(waiting)
    in_sight = {region for region, _ in waiting} | {region for region, count in busy.items() if count}
    if len(in_sight) > 1:
        most = max(1, concurrency // 2)
        assert all(after[region] <= max(most, busy.get(region, 0)) for region in after)


@given(st.integers(2, 9), st.sampled_from(REGIONS))
def test_a_regioncode_whose_batches_never_end_holds_up_no_other(concurrency, dead):
    """Each turn, whatever is at work ends, but not what the dead RegionCode has begun."""
    slots = Slots(concurrency)
    stuck, served = Counter(), Counter()
    for turn in range(30):
        in_sight = REGIONS if turn > 10 else [dead]
        waiting = [shard for region in in_sight for shard in shards(region, 20)[stuck[region] :]]
        started, _ = fill(slots, waiting, stuck, REGIONS)
        for region, _ in started:
            served[region] += 1
            stuck[region] += region == dead
    assert all(served[region] >= 9 for region in REGIONS if region != dead), served


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40))
def test_every_shard_that_waits_is_started_in_the_end(concurrency, regions, count):
    slots = Slots(concurrency)
    waiting = [(f"R{n % regions}", n) for n in range(count)]
    missing = set(waiting)
    for _ in range(count):
        started, _ = fill(slots, waiting, regions=[f"R{n}" for n in range(regions)])
        missing -= set(started)
    assert not missing
