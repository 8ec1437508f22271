import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import pytest

from policy.errors import InvalidJob, JobConflict
from regionjobs.definition import Format, Kind, Misfire, OnPoison, Retry, forget_registered, job, registered
from regionjobs.triggers import After, Cron, Every, Manual


async def settle(batch):
    """A handler that is right."""


def report(batch):
    """One that is run in a thread."""


class Greedy:
    async def __call__(self, batch):
        """Is awaited."""


@dataclass(frozen=True)
class Source:
    """Anything that can be bound to a database is one."""

    table: str = "old"
    key: str | Callable = "key"

    def bind(self, _):
        return None


class PlainSource:
    def bind(self, _):
        return None


TABLE = Source()


@pytest.fixture(autouse=True)
def nothing_is_registered():
    forget_registered()
    yield
    forget_registered()


def test_a_decorated_function_is_a_job_with_its_name_and_the_usual_settings():
    made = job(dataset="orders")(settle)
    assert (made.name, made.dataset, made.handler, made.regions) == ("settle", "orders", settle, ())
    assert (made.kind, made.trigger, made.misfire) == (Kind.BATCH, Manual(), Misfire.RUN_ONCE)
    assert (made.on_poison, made.format, made.retry) == (OnPoison.SET_ASIDE, Format.ROWS, Retry())
    assert made.scan == "per shard"
    assert registered() == (made,)


def test_words_do_for_what_can_be_chosen():
    made = job(dataset="orders", kind="long-running", misfire="skip", on_poison="stop", format="arrow", regions=["EU"])(
        settle
    )
    assert (made.kind, made.misfire) == (Kind.LONG_RUNNING, Misfire.SKIP)
    assert (made.on_poison, made.format) == (OnPoison.STOP, Format.ARROW)
    assert made.regions == ("EU",)


def test_a_job_with_a_source_scans_it_as_a_whole():
    made = job(source=TABLE)(settle)
    assert made.is_global
    assert made.scan == "global"


LIMITS = {
    "name": ("Settle", "1settle", "_settle", "set tle", "a" * 64, "settlé", "settle\n", 5),
    "dataset": (None, ""),
    "source": (object(), "old"),
    "regions": ("EU", [""], [None], 5, None, {"EU"}),
    "trigger": ("every 5 minutes", timedelta(minutes=5), Every),
    "kind": ("daemon", None, []),
    "misfire": ("run twice", None),
    "batch_size": (0, -1, 100_001, "10", 10.0, True),
    "concurrency": (0, 65, None, True),
    "timeout": (timedelta(), timedelta(seconds=-1), 60),
    "retry": (
        5,
        Retry(attempts=0),
        Retry(attempts="5"),
        Retry(first_pause=timedelta()),
        Retry(first_pause=0.2),
        Retry(longest_pause=30),
        Retry(first_pause=timedelta(seconds=2), longest_pause=timedelta(seconds=1)),
    ),
    "on_poison": ("ignore", None),
    "format": ("parquet", None),
    "with_deleted": (1, None),
    "rate": (0, -1, float("nan"), float("inf"), "100", True),
    "yield_above": (timedelta(), timedelta(seconds=-1), 0.1),
}


@pytest.mark.parametrize("argument", LIMITS)
def test_an_argument_out_of_its_limits_is_refused_and_named(argument):
    for value in LIMITS[argument]:
        given = {argument: value} if argument == "source" else {"dataset": "orders", argument: value}
        with pytest.raises(InvalidJob) as raised:
            job(**given)(settle)
        assert raised.value.field_name == argument, value
        assert argument in str(raised.value)
    assert registered() == ()


def test_the_limits_themselves_are_allowed():
    made = job(
        dataset="orders", name="a" * 63, batch_size=100_000, concurrency=64, rate=0.5, regions=("DE", "EU"),
        timeout=timedelta(microseconds=1), yield_above=timedelta(microseconds=1),
        retry=Retry(attempts=1, first_pause=timedelta(seconds=1), longest_pause=timedelta(seconds=1)),
    )(settle)  # fmt: skip
    assert made.batch_size == 100_000


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("dataset", {}),
        ("dataset", {"dataset": "orders", "source": TABLE}),
        ("trigger", {"dataset": "orders", "kind": "long-running", "trigger": Every(minutes=1)}),
        ("trigger", {"dataset": "orders", "trigger": After("settle")}),
        ("format", {"source": TABLE, "format": "arrow"}),
        ("with_deleted", {"source": TABLE, "with_deleted": True}),
    ],
    ids=["neither", "both", "daemon with trigger", "after itself", "arrow of a source", "deleted of a source"],
)
def test_arguments_that_do_not_go_together_are_refused(argument, given):
    with pytest.raises(InvalidJob) as raised:
        job(**given)(settle)
    assert raised.value.field_name == argument


def takes_none():
    return None


def takes_two(batch, other):
    return None


def takes_a_keyword(batch, *, other):
    return None


def yields(batch):
    yield batch


async def yields_later(batch):
    yield batch


class YieldsWhenCalled:
    def __call__(self, batch):
        yield batch


@pytest.mark.parametrize(
    "handler",
    [5, "settle", takes_none, takes_two, takes_a_keyword, yields, yields_later, partial(yields), YieldsWhenCalled()],
    ids=lambda handler: getattr(handler, "__name__", type(handler).__name__),
)
def test_a_handler_that_cannot_be_called_with_a_batch_and_return_is_refused(handler):
    with pytest.raises(InvalidJob) as raised:
        job(dataset="orders", name="settle")(handler)
    assert raised.value.field_name == "handler"


def test_what_is_called_decides_whether_a_handler_is_awaited():
    handlers = {
        "a": settle, "b": report, "c": Greedy(), "d": partial(takes_two_later, other=1), "e": partial(Greedy()),
        "f": partial(takes_two, other=1),
    }  # fmt: skip
    awaited = {name: job(dataset="orders", name=name)(handler).is_coroutine for name, handler in handlers.items()}
    assert awaited == {"a": True, "b": False, "c": True, "d": True, "e": True, "f": False}


async def takes_two_later(batch, other):
    return None


def test_a_handler_without_a_name_needs_one():
    with pytest.raises(InvalidJob) as raised:
        job(dataset="orders")(partial(takes_two, other=1))
    assert raised.value.field_name == "name"


def test_an_error_names_the_job():
    with pytest.raises(InvalidJob, match=r"^job settle: batch_size: from 1 to 100,000$"):
        job(dataset="orders", batch_size=0)(settle)


def define():
    """What a module does each time it is loaded: a new function, a new source, the same lines."""

    async def handler(batch):
        return None

    source = Source(key=lambda row: row["id"])
    return (
        job(dataset="orders", name="one", trigger=Every(minutes=60), regions=["EU"])(handler),
        job(source=source, name="two")(handler),
        job(source=PlainSource(), name="plain")(handler),
        job(dataset="orders", name="three")(partial(takes_two, other=1)),
        job(dataset="orders", name="four")(Greedy()),
    )


def test_a_module_may_be_loaded_twice_and_the_newer_definition_counts():
    define()
    again = define()
    assert {made.name: made for made in registered()} == {made.name: made for made in again}


def test_the_same_period_said_in_another_way_is_no_conflict():
    job(dataset="orders", trigger=Every(minutes=60))(settle)
    job(dataset="orders", trigger=Every(hours=1))(settle)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "customers"},
        {"dataset": "", "source": TABLE},
        {"regions": ["EU"]},
        {"kind": "long-running"},
        {"trigger": Every(minutes=5)},
        {"trigger": Cron("0 3 * * *", "Europe/Berlin")},
        {"misfire": "skip"},
        {"batch_size": 10},
        {"concurrency": 1},
        {"timeout": timedelta(seconds=1)},
        {"retry": Retry(attempts=1)},
        {"retry": Retry(first_pause=timedelta(seconds=1))},
        {"on_poison": "stop"},
        {"format": "arrow"},
        {"with_deleted": True},
        {"rate": 5},
        {"yield_above": timedelta(seconds=1)},
    ],
    ids=lambda other: "-".join(map(str, other)) + "-" + str(list(other.values())[-1])[:24],
)
def test_two_jobs_of_one_name_that_differ_in_anything_are_a_conflict(other):
    first = job(dataset="orders", name="settle")(settle)
    with pytest.raises(JobConflict, match="settle") as raised:
        job(**{"dataset": "orders", "name": "settle", **other})(settle)
    assert raised.value.field_name == "name"
    assert registered() == (first,)


def test_two_functions_of_one_name_are_a_conflict():
    job(dataset="orders", name="settle")(settle)
    with pytest.raises(JobConflict):
        job(dataset="orders", name="settle")(report)


@pytest.mark.parametrize("other", [Source(table="older"), Source(key=len), PlainSource()], ids=lambda it: repr(it)[:24])
def test_two_sources_under_one_name_are_a_conflict(other):
    job(source=Source(), name="old")(settle)
    job(source=Source(), name="old")(settle)
    with pytest.raises(JobConflict):
        job(source=other, name="old")(settle)


def test_jobs_are_listed_by_name():
    for name in ("b", "c", "a"):
        job(dataset="orders", name=name)(settle)
    assert [made.name for made in registered()] == ["a", "b", "c"]


def test_a_description_is_json_that_says_what_there_is_to_know():
    made = job(
        dataset="orders", regions=["EU", "SG"], trigger=After("report"), rate=100.0, yield_above=timedelta(seconds=0.25)
    )(settle)
    assert json.loads(made.describe()) == {
        "regions": ["EU", "SG"],
        "trigger": "after report",
        "after": "report",
        "misfire": "run once",
        "batch_size": 1000,
        "concurrency": 4,
        "timeout": 60.0,
        "attempts": 5,
        "on_poison": "set aside",
        "format": "rows",
        "with_deleted": False,
        "rate": 100.0,
        "yield_above": 0.25,
    }


def test_only_a_job_that_comes_after_another_says_so_in_its_description():
    assert "after" not in json.loads(job(dataset="orders", trigger=Every(minutes=5))(settle).describe())


def test_pauses_between_attempts_double_up_to_the_longest():
    retry = Retry(first_pause=timedelta(seconds=1), longest_pause=timedelta(seconds=5))
    assert [retry.pause(failures) for failures in (1, 2, 3, 4, 5, 10**9)] == [1, 2, 4, 5, 5, 5]
    assert retry.pause(0) == 1
