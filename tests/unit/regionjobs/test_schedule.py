from datetime import UTC, datetime, timedelta
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionjobs.definition import Misfire
from regionjobs.schedule import MAX_TIMES, due
from regionjobs.triggers import After, At, Cron, Every, Manual, next_after

START = datetime(2026, 3, 28, 22, tzinfo=UTC)  # three hours before clocks in Berlin go forward
TRIGGERS = st.sampled_from(
    [
        Every(minutes=7),
        Every(hours=5, seconds=3.5),
        Cron("*/20 * * * *"),
        Cron("*/20 * * * *", "Europe/Berlin"),
        Cron("30 2,4 * * *", "Europe/Berlin"),
        Cron("0 0 1 4 *", "America/New_York"),
        At(*(START + timedelta(minutes=n * n) for n in range(40))),
        At(START),
        Manual(),
        After("another"),
    ]
)
NOWS = st.lists(st.integers(-100, 2880).map(lambda n: START + timedelta(minutes=n, seconds=n % 7)), max_size=30)


def at(*, hours=0, minutes=0, seconds=0):
    return START + timedelta(hours=hours, minutes=minutes, seconds=seconds)


def all_times(trigger, end):
    time = next_after(trigger, START)
    while time is not None and time <= end:
        yield time
        time = next_after(trigger, time)


def asked_at(trigger, rule, nows):
    """Every answer, when each is stored as what is known at the next question."""
    known = START
    for now in nows:
        answer = due(trigger, rule, known=known, now=now)
        if answer is not None:
            assert known < answer.through <= now
            assert answer.upcoming == next_after(trigger, now)
            known = answer.through
            yield now, answer


@given(TRIGGERS, NOWS)
def test_run_all_fires_each_time_once_whenever_one_asks(trigger, nows):
    fired = [time for _, answer in asked_at(trigger, Misfire.RUN_ALL, nows) for time in answer.times]
    assert fired == list(all_times(trigger, max(nows, default=START)))


@given(TRIGGERS, NOWS)
def test_run_once_fires_the_newest_of_those_that_have_passed_and_counts_the_others(trigger, nows):
    answers = [answer for _, answer in asked_at(trigger, Misfire.RUN_ONCE, nows)]
    passed = list(all_times(trigger, max(nows, default=START)))
    assert all(answer.times == (answer.through,) for answer in answers)
    assert [answer.through for answer in answers][-1:] == passed[-1:]
    assert sum(1 + answer.misfires for answer in answers) == len(passed)


@given(TRIGGERS, NOWS)
def test_skip_fires_only_what_has_just_come_and_counts_the_others(trigger, nows):
    answers = list(asked_at(trigger, Misfire.SKIP, nows))
    passed = list(all_times(trigger, max(nows, default=START)))
    assert all(now - time <= timedelta(seconds=30) for now, answer in answers for time in answer.times)
    assert sum(len(answer.times) + answer.misfires for _, answer in answers) == len(passed)


@given(TRIGGERS, st.sampled_from(Misfire), NOWS)
def test_who_asks_in_time_gets_the_same_times_whatever_the_rule(trigger, rule, nows):
    on_time = [time + timedelta(seconds=1) for time in all_times(trigger, max(nows, default=START))]
    answers = list(asked_at(trigger, rule, on_time))
    assert [answer.times for _, answer in answers] == [(now - timedelta(seconds=1),) for now in on_time]
    assert not any(answer.misfires for _, answer in answers)


def test_nothing_is_due_before_the_next_time():
    assert due(Every(hours=1), Misfire.RUN_ALL, known=at(), now=at(minutes=59)) is None
    assert due(Every(hours=1), Misfire.RUN_ALL, known=at(), now=at(hours=1)) is not None


def test_a_clock_that_is_set_back_fires_nothing_again():
    assert due(Every(hours=1), Misfire.RUN_ALL, known=at(hours=3), now=at(hours=1)) is None
    assert due(Every(hours=1), Misfire.RUN_ALL, known=at(hours=3), now=at(hours=3)) is None


def test_skip_passes_over_what_is_older_than_it_tolerates_to_the_second():
    every = Every(hours=1)
    in_time = due(every, Misfire.SKIP, known=at(), now=at(hours=2, seconds=30))
    assert in_time.times == (at(hours=2),)
    assert in_time.misfires == 1
    too_late = due(every, Misfire.SKIP, known=at(), now=at(hours=2, seconds=31))
    assert too_late.times == ()
    assert too_late.misfires == 2
    assert too_late.through == at(hours=2)
    patient = due(every, Misfire.SKIP, known=at(), now=at(hours=2, seconds=31), tolerance=timedelta(minutes=1))
    assert patient.times == (at(hours=2),)


def test_the_last_of_the_times_named_has_nothing_after_it():
    answer = due(At(at(minutes=1)), Misfire.RUN_ONCE, known=at(), now=at(minutes=2))
    assert answer.times == (at(minutes=1),)
    assert answer.upcoming is None


@pytest.mark.parametrize("missed", [MAX_TIMES - 1, MAX_TIMES, MAX_TIMES + 1, MAX_TIMES + 700, 10 * MAX_TIMES])
def test_of_very_many_times_the_newest_thousand_are_run(missed):
    answer = due(Every(minutes=1), Misfire.RUN_ALL, known=at(), now=at(minutes=missed, seconds=30))
    first = max(missed - MAX_TIMES, 0) + 1
    assert answer.times == tuple(at(minutes=n) for n in range(first, missed + 1))
    assert answer.misfires == min(first - 1, MAX_TIMES)
    assert answer.through == at(minutes=missed)


@pytest.mark.parametrize("expression", ["* * * * * *", "* * * 1 *", "0-59 9-17 * * MON", "0 0 1 1 *"])
def test_years_of_missed_times_are_decided_in_a_moment(expression):
    cron = Cron(expression, "Europe/Berlin")
    known = START - timedelta(days=3650)
    began = perf_counter()
    answer = due(cron, Misfire.RUN_ALL, known=known, now=START)
    assert perf_counter() - began < 5  # counted through, it would be minutes
    assert len(answer.times) == (10 if expression == "0 0 1 1 *" else MAX_TIMES)
    assert list(answer.times) == sorted(set(answer.times))
    following = [next_after(cron, time) for time in answer.times]
    assert following[:-1] == list(answer.times[1:])
    assert following[-1] > START
    assert answer.misfires <= MAX_TIMES
