import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionjobs.pace import LONGEST_PAUSE, SLOWEST, Pace

SLOW, QUICK = 0.5, 0.01


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def yielding(clock):
    return Pace(yield_above=timedelta(milliseconds=100), clock=clock)


def observed(pace, clock, latencies, *, every=1.0):
    for latency in latencies:
        clock.now += every
        pace.observe(latency)
    return pace.speed


def test_a_job_without_limits_never_waits(clock):
    pace = Pace(clock=clock)
    pace.observe(math.inf)
    assert pace.speed == 1
    assert pace.pause(100_000, took=30) == 0


def test_a_rate_is_kept_over_time_whatever_the_work_takes(clock):
    pace = Pace(rate=1000, clock=clock)
    began, rows = clock.now, 0
    for _ in range(200):
        clock.now += 0.3  # the batch
        rows += 500
        clock.now += pace.pause(500)
    assert rows / (clock.now - began) == pytest.approx(1000, rel=0.02)


def test_a_slow_job_within_its_rate_never_waits(clock):
    pace = Pace(rate=1000, clock=clock)
    for _ in range(50):
        clock.now += 0.6
        assert pace.pause(500) == 0


def test_a_long_rest_earns_no_more_than_a_second(clock):
    pace = Pace(rate=1000, clock=clock)
    pace.pause(1)
    clock.now += 3600
    assert pace.pause(1000) == 0
    assert pace.pause(1000) == pytest.approx(1)


def test_shards_that_work_at_once_share_the_rate(clock):
    pace = Pace(rate=1000, clock=clock)
    assert [pace.pause(1000) for _ in range(4)] == pytest.approx([0, 1, 2, 3])


def test_a_rate_may_ask_for_pauses_longer_than_yielding_does(clock):
    pace = Pace(rate=0.1, clock=clock)
    assert pace.pause(10) > LONGEST_PAUSE


@given(st.floats(0.5, 1e6), st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 100)), min_size=1, max_size=50))
def test_no_stretch_of_time_has_more_than_the_rate_a_second_and_a_batch(rate, batches):
    clock = Clock()
    pace = Pace(rate=rate, clock=clock)
    began, rows = clock.now, 0
    for count, took in batches:
        rows += count
        assert rows <= (clock.now - began + 1 + 1e-6) * rate + count  # as the batch begins
        clock.now += took
        clock.now += pace.pause(count, took)


def test_a_slow_answer_halves_the_share_of_time_at_once(clock):
    pace = yielding(clock)
    pace.observe(SLOW)
    assert pace.speed == 1 / 2
    assert pace.pause(1000, took=0.2) == pytest.approx(0.2)
    clock.now += 1
    pace.observe(SLOW)
    assert pace.speed == 1 / 4
    assert pace.pause(1000, took=0.2) == pytest.approx(0.6)


def test_many_slow_answers_within_a_second_count_as_one(clock):
    pace = yielding(clock)
    pace.observe(SLOW)
    assert observed(pace, clock, [SLOW] * 9, every=0.1) == 1 / 2


def test_an_answer_that_takes_just_as_long_as_it_may_is_quick(clock):
    pace = yielding(clock)
    pace.observe(0.1)
    assert pace.speed == 1


def test_no_answer_at_all_is_a_slow_one(clock):
    pace = yielding(clock)
    pace.observe(math.inf)
    assert pace.speed == 1 / 2


def test_a_job_goes_on_however_slow_everything_stays(clock):
    pace = yielding(clock)
    assert observed(pace, clock, [SLOW] * 1000) == SLOWEST
    assert pace.pause(1000, took=60) == LONGEST_PAUSE


def test_speed_comes_back_step_by_step_within_a_quarter_of_a_minute(clock):
    pace = yielding(clock)
    observed(pace, clock, [SLOW] * 20)
    speeds = [observed(pace, clock, [QUICK]) for _ in range(16)]
    assert speeds == sorted(speeds)
    assert speeds[0] == pytest.approx(SLOWEST + 1 / 16)
    assert speeds[-1] == 1


def test_many_quick_answers_within_a_second_count_as_one(clock):
    pace = yielding(clock)
    pace.observe(SLOW)
    assert observed(pace, clock, [QUICK] * 19, every=0.1) == pytest.approx(1 / 2 + 1 / 16)


def test_one_that_is_slow_outweighs_another_that_is_quick(clock):
    """The database is quick and the gateway is not: the job yields."""
    pace = yielding(clock)
    assert observed(pace, clock, [QUICK, SLOW] * 200, every=0.1) <= 1 / 8


def test_a_batch_that_took_no_time_pauses_too_while_everything_is_slow(clock):
    pace = yielding(clock)
    pace.observe(SLOW)
    assert pace.pause(0) > 0


def test_the_longer_of_the_two_pauses_counts(clock):
    pace = Pace(rate=1000, yield_above=timedelta(milliseconds=100), clock=clock)
    pace.observe(SLOW)
    assert pace.pause(4000, took=1) == pytest.approx(3)
    clock.now += 10
    assert pace.pause(1, took=1) == pytest.approx(1)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), max_size=100))
def test_speed_stays_within_its_bounds_whatever_is_observed(observations):
    clock = Clock()
    pace = yielding(clock)
    for elapsed, latency in observations:
        clock.now += elapsed
        pace.observe(latency)
        assert SLOWEST <= pace.speed <= 1
        assert 0 <= pace.pause(1000, took=1) <= LONGEST_PAUSE
