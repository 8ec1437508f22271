from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InvalidJob
from regionjobs.triggers import After, At, Cron, Every, Manual, next_after


def utc(*when):
    return datetime(*when, tzinfo=UTC)


MOMENTS = st.integers(0, 2 * 10**15).map(lambda micros: utc(1990, 1, 1) + timedelta(microseconds=micros))
PERIODS = st.integers(1, 10**8).map(lambda seconds: Every(seconds=seconds)) | st.builds(
    Every, minutes=st.floats(1, 10**4), seconds=st.floats(0, 100)
)
BERLIN = "Europe/Berlin"
CHANGES = [
    (BERLIN, utc(2026, 3, 29, 1)),
    (BERLIN, utc(2026, 10, 25, 1)),
    ("America/New_York", utc(2026, 3, 8, 7)),
    ("America/New_York", utc(2026, 11, 1, 6)),
    ("Australia/Lord_Howe", utc(2026, 4, 4, 15)),  # by half an hour
    ("Australia/Lord_Howe", utc(2026, 10, 3, 15, 30)),
    ("Antarctica/Troll", utc(2026, 3, 29, 1)),  # by two hours
    ("Antarctica/Troll", utc(2026, 10, 25, 1)),
    ("America/Santiago", utc(2026, 4, 5, 3)),  # at midnight
    ("America/Santiago", utc(2026, 9, 6, 4)),
    ("Pacific/Apia", utc(2011, 12, 30, 10)),  # leaves out a day
    ("UTC", utc(2026, 3, 29, 1)),
]
MINUTES = st.sampled_from(["*", "*/7", "*/30", "0", "1", "15,45", "30", "0-10/5", "59"])
HOURS = st.sampled_from(["*", "*/2", "*/5", "0", "1,2,3", "2", "0-4", "23", "10/3"])
DAYS = st.sampled_from(["* * *", "*/2 * *", "* * SUN", "L * *", "5,29,30 * SUN"])


def all_times(trigger, start, end):
    times = []
    time = next_after(trigger, start)
    while time is not None and time <= end:
        times.append(time)
        time = next_after(trigger, time)
    return times


def local_times(cron, start, end):
    """What a clock shows when it comes, as the trigger's own zone tells it."""
    return [time.astimezone(ZoneInfo(cron.timezone)).isoformat(" ") for time in all_times(cron, start, end)]


def expected(cron, start, end):
    """The rule said in another way, minute by minute."""
    zone = ZoneInfo(cron.timezone)
    minutes = [start + timedelta(minutes=n) for n in range(int((end - start) / timedelta(minutes=1)) + 1)]
    shown = [minute.astimezone(zone).replace(tzinfo=None, fold=0) for minute in minutes]
    fitting = set()
    for local in CronSim(cron.expression, min(shown) - timedelta(minutes=1)):
        if local > max(shown):
            break
        fitting.add(local)
    if not cron.names_a_time:
        return [minute for minute, local in zip(minutes, shown, strict=True) if local in fitting and minute > start]
    times = set()
    for wanted in fitting:  # the first minute at which the clock shows that or more
        times.add(next(minute for minute, local in zip(minutes, shown, strict=True) if local >= wanted))
    return sorted(time for time in times if time > start)


@given(PERIODS, MOMENTS)
def test_every_comes_at_the_multiples_of_its_period_since_1970(every, time):
    found = next_after(every, time)
    assert (found - utc(1970, 1, 1)) % every.period == timedelta()
    assert time < found <= time + every.period


def test_every_five_minutes_comes_on_the_five_minutes():
    times = all_times(Every(minutes=5), utc(2026, 1, 1, 11, 58, 3), utc(2026, 1, 1, 12, 10))
    assert [time.strftime("%H:%M:%S") for time in times] == ["12:00:00", "12:05:00", "12:10:00"]


def test_the_time_itself_never_comes_again():
    noon = utc(2026, 1, 1, 12)
    for trigger in (Every(hours=1), Cron("0 * * * *"), Cron("0 12 * * *", "Africa/Abidjan"), At(noon)):
        just_before = noon - timedelta(microseconds=1)
        assert next_after(trigger, just_before) == noon, trigger
        assert next_after(trigger, noon) != noon, trigger


def test_the_same_period_is_the_same_trigger_however_it_is_said():
    assert Every(minutes=60) == Every(hours=1)
    assert hash(Every(minutes=60)) == hash(Every(hours=1))
    assert Every(minutes=60) != Every(hours=1, seconds=1)


REFUSED = [
    (Every, {}),
    (Every, {"seconds": 0.999}),
    (Every, {"seconds": -5}),
    (Every, {"days": 3661}),
    (Every, {"days": float("nan")}),
    (Every, {"hours": float("inf")}),
    (Every, {"minutes": "5"}),
    (Cron, {"expression": ""}),
    (Cron, {"expression": "* * * *"}),
    (Cron, {"expression": "* * * * * * *"}),
    (Cron, {"expression": "60 * * * *"}),
    (Cron, {"expression": "@daily"}),
    (Cron, {"expression": "0 " * 101}),
    (Cron, {"expression": None}),
    (Cron, {"expression": "0 3 * * *", "timezone": "Europe/Atlantis"}),
    (Cron, {"expression": "0 3 * * *", "timezone": "../../etc/passwd"}),
    (Cron, {"expression": "0 3 * * *", "timezone": ""}),
    (Cron, {"expression": "0 3 * * *", "timezone": None}),
    (After, {"job": ""}),
    (After, {"job": "Settle"}),
    (After, {"job": None}),
]


@pytest.mark.parametrize(("kind", "arguments"), REFUSED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_trigger_that_makes_no_sense_is_refused_when_it_is_made(kind, arguments):
    with pytest.raises(InvalidJob, match=r"^trigger: ") as raised:
        kind(**arguments)
    assert raised.value.field_name == "trigger"


def test_at_is_refused_without_times_or_with_ones_that_know_no_time_zone():
    naive = utc(2026, 1, 1).replace(tzinfo=None)
    too_many = [utc(2026, 1, 1) + timedelta(hours=n) for n in range(1001)]
    for times in ([], [naive], [utc(2026, 1, 1), naive], ["2026-01-01"], too_many):
        with pytest.raises(InvalidJob, match=r"^trigger: "):
            At(*times)


def test_a_cron_expression_for_a_day_that_never_comes_is_refused():
    for expression in ("0 0 30 2 *", "0 0 31 4,6 *", "0 0 */30 * MON#3"):
        with pytest.raises(InvalidJob):
            Cron(expression)
    assert Cron("0 0 29 2 *")


@given(st.text(alphabet="0123456789*/,-#LW MONSUNJAN²", max_size=30))
def test_any_text_is_a_cron_expression_or_is_refused(text):
    try:
        cron = Cron(text)
    except InvalidJob:
        return
    assert next_after(cron, utc(2026, 1, 1)) > utc(2026, 1, 1)


def test_a_time_that_spring_leaves_out_comes_when_the_clock_has_jumped():
    cron = Cron("30 2 * * *", BERLIN)
    assert local_times(cron, utc(2026, 3, 27, 12), utc(2026, 3, 30, 12)) == [
        "2026-03-28 02:30:00+01:00",
        "2026-03-29 03:00:00+02:00",
        "2026-03-30 02:30:00+02:00",
    ]


def test_a_time_that_autumn_shows_twice_comes_once():
    cron = Cron("30 2 * * *", BERLIN)
    assert local_times(cron, utc(2026, 10, 24, 12), utc(2026, 10, 26, 12)) == [
        "2026-10-25 02:30:00+02:00",
        "2026-10-26 02:30:00+01:00",
    ]


def test_seconds_in_the_expression_change_nothing_about_that():
    cron = Cron("15 30 2 * * *", BERLIN)
    assert local_times(cron, utc(2026, 3, 28, 12), utc(2026, 3, 30, 12)) == [
        "2026-03-29 03:00:00+02:00",
        "2026-03-30 02:30:15+02:00",
    ]
    assert local_times(cron, utc(2026, 10, 24, 12), utc(2026, 10, 25, 12)) == ["2026-10-25 02:30:15+02:00"]


def test_several_times_that_spring_leaves_out_come_as_one():
    cron = Cron("0,20,40 2,3 * * *", BERLIN)
    assert local_times(cron, utc(2026, 3, 28, 12), utc(2026, 3, 29, 12)) == [
        "2026-03-29 03:00:00+02:00",
        "2026-03-29 03:20:00+02:00",
        "2026-03-29 03:40:00+02:00",
    ]


def test_every_quarter_of_an_hour_goes_on_evenly_whatever_the_clock_does():
    cron = Cron("*/15 * * * *", BERLIN)
    for day in (utc(2026, 3, 28, 12), utc(2026, 10, 24, 12)):
        times = all_times(cron, day, day + timedelta(days=1))
        assert len(times) == 96
        assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(minutes=15)}


@given(st.sampled_from(CHANGES), MINUTES, HOURS, DAYS)
def test_cron_keeps_its_rule_wherever_clocks_change(change, minutes, hours, days):
    zone, moment = change
    cron = Cron(f"{minutes} {hours} {days}", zone)
    start, end = moment - timedelta(hours=30), moment + timedelta(hours=30)
    assert all_times(cron, start, end) == [time for time in expected(cron, start, end) if time <= end]


@given(st.sampled_from(CHANGES), MINUTES, HOURS, DAYS, st.integers(-360, 360))
def test_the_times_are_the_same_wherever_one_begins_to_ask(change, minutes, hours, days, minute):
    zone, moment = change
    cron = Cron(f"{minutes} {hours} {days}", zone)
    asked = moment + timedelta(minutes=minute, seconds=1, microseconds=1)
    known = all_times(cron, moment - timedelta(hours=12), moment + timedelta(hours=12))
    assert all_times(cron, asked, moment + timedelta(hours=12)) == [time for time in known if time > asked]


def test_at_names_its_times_in_order_and_each_once():
    noon = utc(2026, 1, 1, 12)
    same = noon.astimezone(ZoneInfo(BERLIN))
    at = At(noon + timedelta(hours=2), noon, same)
    assert at.times == (noon, noon + timedelta(hours=2))
    assert at == At(noon, noon + timedelta(hours=2))
    assert next_after(at, noon + timedelta(hours=2)) is None


def test_hand_and_another_job_are_no_matter_of_time():
    assert next_after(Manual(), utc(2026, 1, 1)) is None
    assert next_after(After("settle"), utc(2026, 1, 1)) is None


def test_a_trigger_says_what_it_is():
    triggers = (
        Every(days=1, hours=1.5, seconds=2.5), Every(minutes=90), Cron("0 3 * * MON", BERLIN), Manual(),
        After("settle"), At(utc(2026, 1, 1, 12), utc(2026, 2, 1)),
    )  # fmt: skip
    assert [str(trigger) for trigger in triggers] == [
        "every 1 d 1 h 30 min 2.5 s",
        "every 1 h 30 min",
        "cron '0 3 * * MON' in Europe/Berlin",
        "by hand",
        "after settle",
        "at 2026-01-01T12:00:00Z, 2026-02-01T00:00:00Z",
    ]
