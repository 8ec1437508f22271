from collections import Counter
from time import perf_counter

from hypothesis import given
from hypothesis import strategies as st

from regionjobs.distribution import share

SHARDS = [(region, number) for region in ("DE", "FR", "SG", "US-CA") for number in range(64)]
NAMES = st.text(alphabet="abc.-01é", min_size=1, max_size=12)
RUNNERS = st.sets(NAMES, min_size=1, max_size=8)


def owners(job, shards, runners):
    """Whose each shard is, when each runner asks for itself."""
    owner = {}
    for me in runners:
        for shard in share(job, shards, runners, me):
            assert shard not in owner, "two runners have it"
            owner[shard] = me
    assert set(owner) == set(shards)
    return owner


@given(NAMES, RUNNERS)
def test_each_shard_is_one_runners(job, runners):
    owners(job, SHARDS, runners)


@given(NAMES, RUNNERS, NAMES)
def test_a_runner_that_joins_takes_and_moves_nothing_else(job, runners, newcomer):
    before, after = owners(job, SHARDS, runners), owners(job, SHARDS, runners | {newcomer})
    assert {after[shard] for shard in SHARDS if after[shard] != before[shard]} <= {newcomer}


@given(NAMES, RUNNERS, st.data())
def test_a_runner_that_leaves_gives_up_its_own_shards_and_moves_nothing_else(job, runners, data):
    leaver = data.draw(st.sampled_from(sorted(runners)))
    before = owners(job, SHARDS, runners | {"stays"})
    after = owners(job, SHARDS, (runners | {"stays"}) - {leaver})
    assert {before[shard] for shard in SHARDS if after[shard] != before[shard]} <= {leaver}


@given(NAMES, RUNNERS, st.lists(st.sampled_from(SHARDS)), st.data())
def test_a_share_does_not_depend_on_the_other_shards_or_on_any_order(job, runners, shards, data):
    me = data.draw(st.sampled_from(sorted(runners)))
    expected = share(job, SHARDS, runners, me) & set(shards)
    listed = data.draw(st.permutations(sorted(runners)))
    assert share(job, shards, [*listed, me], me) == expected


def test_a_runner_that_is_no_member_has_no_share():
    assert share("settle", SHARDS, ["another"], "me") == frozenset()
    assert share("settle", SHARDS, [], "me") == frozenset()


def test_one_runner_has_everything():
    assert share("settle", SHARDS, ["me"], "me") == set(SHARDS)


def test_shards_spread_evenly_over_runners_whose_names_are_alike():
    shards = [(f"R{region}", number) for region in range(10) for number in range(1000)]
    runners = [f"runner-{n}.{n:016x}" for n in range(10)]
    counts = Counter(owners("settle", shards, runners).values())
    # 1,000 each, with a deviation of 30 for a fair choice: five of them.
    assert all(850 <= counts[runner] <= 1150 for runner in runners), counts


def test_what_a_runner_leaves_spreads_evenly_over_the_others():
    shards = [("DE", number) for number in range(10_000)]
    runners = [f"runner-{n}" for n in range(5)]
    before, after = owners("settle", shards, runners), owners("settle", shards, runners[1:])
    heirs = Counter(after[shard] for shard in shards if before[shard] == runners[0])
    assert all(400 <= heirs[runner] <= 600 for runner in runners[1:]), heirs


def test_two_jobs_do_not_lay_their_shards_alike():
    runners = [f"runner-{n}" for n in range(4)]
    one, other = owners("settle", SHARDS, runners), owners("report", SHARDS, runners)
    alike = sum(one[shard] == other[shard] for shard in SHARDS)
    assert 30 <= alike <= 98, alike  # 64 for a fair choice, with a deviation of 7


def test_all_processes_agree_for_as_long_as_runners_of_two_releases_meet():
    mine = share("settle", [("DE", number) for number in range(16)], ["a", "b", "c"], "b")
    assert sorted(number for _, number in mine) == [1, 5, 6, 9, 12, 15]


def test_ten_thousand_shards_and_ten_runners_take_a_moment():
    shards = [("DE", number) for number in range(10_000)]
    runners = [f"runner-{n}" for n in range(10)]
    times = []
    for me in runners:
        began = perf_counter()
        share("settle", shards, runners, me)
        times.append(perf_counter() - began)
    assert min(times) < 0.25, times  # 0.03 s on one core that has nothing else to do
