"""What a job is: `@regiongate.job(...)` turns a function into a `Job`, checked at once.

A definition names no runner and no IDC: the same module is deployed everywhere, and each runner handles what its IDC
owns. Whatever breaks a rule raises `InvalidJob`, which names the argument.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from policy.errors import InvalidJob, JobConflict
from regionjobs.triggers import JOB_NAME, After, At, Cron, Every, Manual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from regionjobs.source import Source
    from regionjobs.triggers import Trigger

MAX_BATCH: Final = 100_000
MAX_CONCURRENCY: Final = 64


class Kind(StrEnum):
    """How long a job goes on."""

    BATCH = "batch"
    """One pass over what has changed, for each time that its trigger fires."""
    LONG_RUNNING = "long-running"
    """For ever, as changes come, until it is told to stop."""


class Misfire(StrEnum):
    """What becomes of scheduled times that passed while no runner was there."""

    RUN_ONCE = "run once"
    """One pass for all of them: the newest time counts."""
    RUN_ALL = "run all"
    """A pass for each, in order."""
    SKIP = "skip"
    """None: the next pass is at the next time."""


class OnPoison(StrEnum):
    """What becomes of a row that keeps failing."""

    SET_ASIDE = "set aside"
    """It is set aside inside its region, to be looked at and replayed; the rest goes on."""
    STOP = "stop"
    """The job stops in that shard, and only there, until it is resumed."""


class Format(StrEnum):
    """How a batch holds its rows."""

    ROWS = "rows"
    ARROW = "arrow"
    """As an Arrow table, made without a Python object for each value; needs the extra `arrow`."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How a batch that fails is tried again."""

    attempts: int = 5
    """In all, before the batch is taken apart to find the row that fails. At least 1."""
    first_pause: timedelta = timedelta(milliseconds=200)
    longest_pause: timedelta = timedelta(seconds=30)

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row: doubles up to the longest, without jitter."""
        doubled = self.first_pause.total_seconds() * 2.0 ** min(max(failures - 1, 0), 30)
        return min(doubled, self.longest_pause.total_seconds())


@dataclass(frozen=True, slots=True)
class Job:
    """A job, ready to be run."""

    name: str
    handler: Callable[..., Any]
    """Takes a `Batch`; a coroutine function, or a plain one, which is run in a thread."""
    dataset: str
    """Empty for a source of one's own."""
    regions: tuple[str, ...]
    """RegionCodes and names of groups; empty: all of the policy."""
    kind: Kind
    trigger: Trigger
    misfire: Misfire = Misfire.RUN_ONCE
    batch_size: int = 1000
    """Most rows in a batch."""
    concurrency: int = 4
    """Most batches at once, in each runner."""
    timeout: timedelta = timedelta(seconds=60)
    """How long a batch may take."""
    retry: Retry = field(default_factory=Retry)
    on_poison: OnPoison = OnPoison.SET_ASIDE
    format: Format = Format.ROWS
    with_deleted: bool = False
    """Whether batches hold rows that have been deleted, too."""
    rate: float | None = None
    """Most rows a second, in each runner."""
    yield_above: timedelta | None = None
    """The job slows down while the database or the gateway of its IDC answers more slowly than this."""
    source: Source | None = None
    """None: the dataset, shard by shard. Otherwise one source with one increasing position, scanned as a whole."""

    @property
    def is_global(self) -> bool:
        """Whether it scans one source as a whole instead of shard by shard."""
        return self.source is not None

    @property
    def scan(self) -> str:
        """Its kind of scan, in words."""
        return "global" if self.is_global else "per shard"

    @property
    def is_coroutine(self) -> bool:
        """Whether the handler is awaited, instead of run in a thread."""
        return inspect.iscoroutinefunction(_called(self.handler))

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that two definitions of one name must share, when one process is told of both."""
        return (
            *map(_likeness, (self.handler, self.source)),
            self.dataset, self.kind, self.trigger, self.retry, *self._described(),
        )  # fmt: skip

    def describe(self) -> str:
        """What a person may want to know of it, as JSON."""
        names = (
            "regions", "trigger", "misfire", "batch_size", "concurrency", "timeout", "attempts", "on_poison", "format",
            "with_deleted", "rate", "yield_above",
        )  # fmt: skip
        description: dict[str, Any] = dict(zip(names, self._described(), strict=True))
        if isinstance(self.trigger, After):
            description["after"] = self.trigger.job
        return json.dumps(description)

    def _described(self) -> tuple[Any, ...]:
        return (
            list(self.regions), str(self.trigger), self.misfire.value, self.batch_size, self.concurrency,
            self.timeout.total_seconds(), self.retry.attempts, self.on_poison.value, self.format.value,
            self.with_deleted, self.rate, self.yield_above.total_seconds() if self.yield_above else None,
        )  # fmt: skip


_registered: dict[str, Job] = {}


def job(
    *,
    dataset: str = "",
    source: Source | None = None,
    regions: Sequence[str] = (),
    trigger: Trigger | None = None,
    kind: Kind | str = Kind.BATCH,
    name: str = "",
    misfire: Misfire | str = Misfire.RUN_ONCE,
    batch_size: int = 1000,
    concurrency: int = 4,
    timeout: timedelta = timedelta(seconds=60),
    retry: Retry | None = None,
    on_poison: OnPoison | str = OnPoison.SET_ASIDE,
    format: Format | str = Format.ROWS,  # noqa: A002 (the word that a reader expects)
    with_deleted: bool = False,
    rate: float | None = None,
    yield_above: timedelta | None = None,
) -> Callable[[Callable[..., Any]], Job]:
    """Makes a job of a function that takes a `Batch`.

    The function returns when everything in the batch is done: then its effects and the offset are committed together.
    Whatever it raises rolls both back, and the batch is tried again.

    Args:
        dataset: The policy's name of the rows to scan, shard by shard; or give a `source`.
        source: `AdoptedTable` or `CallableSource`: scanned as a whole, filtered by what this IDC owns.
        regions: RegionCodes and names of groups; all of the policy when empty.
        trigger: `Every`, `Cron`, `At`, `Manual` or `After`; a batch job without one is run by hand. A long-running job
            has none.
        kind: `batch` (one pass for each firing) or `long-running`.
        name: Of the job; the function's when empty. Offsets are kept under it.
        misfire: What becomes of times that passed while no runner was there: `run once`, `run all` or `skip`.
        batch_size: Most rows in a batch, 1 to 100,000.
        concurrency: Most batches at once, in each runner.
        timeout: How long a batch may take.
        retry: How a batch that fails is tried again.
        on_poison: What becomes of a row that keeps failing: `set aside` or `stop`.
        format: `rows`, or `arrow` for Arrow tables.
        with_deleted: Whether batches hold rows that have been deleted, too (with `is_deleted`).
        rate: Most rows a second, in each runner.
        yield_above: Slow down while the database or the gateway of the IDC answers more slowly than this.

    Raises:
        InvalidJob: An argument breaks a rule.
        JobConflict: Another job of this process has this name.
    """

    def make(handler: Callable[..., Any]) -> Job:
        made = Job(
            name=name or getattr(handler, "__name__", ""),
            handler=handler,
            dataset=dataset,
            regions=_names(regions),
            kind=_one_of(Kind, kind, "kind"),
            trigger=Manual() if trigger is None else trigger,
            misfire=_one_of(Misfire, misfire, "misfire"),
            batch_size=batch_size,
            concurrency=concurrency,
            timeout=timeout,
            retry=retry or Retry(),
            on_poison=_one_of(OnPoison, on_poison, "on_poison"),
            format=_one_of(Format, format, "format"),
            with_deleted=with_deleted,
            rate=rate,
            yield_above=yield_above,
            source=source,
        )
        check(made)
        return _register(made)

    return make


def registered() -> tuple[Job, ...]:
    """Every job that this process has defined, by name."""
    return tuple(_registered[name] for name in sorted(_registered))


def forget_registered() -> None:
    """Forgets them all: for tests, and for whoever loads a module again."""
    _registered.clear()


def check(made: Job) -> None:
    """Raises `InvalidJob` for the first rule that a definition breaks."""
    for is_right, argument, rule in _rules(made):
        if not is_right:
            raise InvalidJob(f"job {made.name or '(without a name)'}: {argument}: {rule}", field_name=argument)


_TYPES: Final[tuple[tuple[str, Any, str], ...]] = (
    ("name", str, "a text"),
    ("dataset", str, "a text"),
    ("trigger", Every | Cron | At | Manual | After, "an Every, Cron, At, Manual or After"),
    ("batch_size", int, "a whole number"),
    ("concurrency", int, "a whole number"),
    ("timeout", timedelta, "a timedelta"),
    ("retry", Retry, "a Retry"),
    ("with_deleted", bool, "True or False"),
    ("rate", float | int | None, "a number"),
    ("yield_above", timedelta | None, "a timedelta"),
)
_RETRY_TYPES: Final[tuple[tuple[str, Any, str], ...]] = (
    ("attempts", int, "a whole number"),
    ("first_pause", timedelta, "a timedelta"),
    ("longest_pause", timedelta, "a timedelta"),
)


def _rules(made: Job) -> Iterable[tuple[bool, str, str]]:
    """Each rule as whether it is kept, the argument, and the rule in words; a later one relies on those before it."""
    for argument, kind, words in _TYPES:
        yield _is_a(getattr(made, argument), kind), argument, f"must be {words}"
    for argument, kind, words in _RETRY_TYPES:
        yield _is_a(getattr(made.retry, argument), kind), "retry", f"{argument} must be {words}"
    yield bool(JOB_NAME.fullmatch(made.name)), "name", "small letters, digits, - and _, at most 63, a letter first"
    yield from _rules_of_handlers(made.handler)
    yield made.source is None or callable(getattr(made.source, "bind", None)), "source", "must be a source"
    yield bool(made.dataset) != (made.source is not None), "dataset", "give a dataset or a source, not both or none"
    yield all(made.regions), "regions", "an empty name"
    yield 1 <= made.batch_size <= MAX_BATCH, "batch_size", f"from 1 to {MAX_BATCH:,}"
    yield 1 <= made.concurrency <= MAX_CONCURRENCY, "concurrency", f"from 1 to {MAX_CONCURRENCY}"
    yield made.timeout > timedelta(), "timeout", "more than nothing"
    yield made.retry.attempts >= 1, "retry", "at least one attempt"
    yield timedelta() < made.retry.first_pause <= made.retry.longest_pause, "retry", "pauses above 0, the longest last"
    yield made.rate is None or 0 < made.rate < math.inf, "rate", "more than 0 rows a second"
    yield made.yield_above is None or made.yield_above > timedelta(), "yield_above", "more than nothing"
    yield made.kind is Kind.BATCH or isinstance(made.trigger, Manual), "trigger", "a long-running job has none"
    yield not (isinstance(made.trigger, After) and made.trigger.job == made.name), "trigger", "not after itself"
    yield not (made.is_global and made.format is Format.ARROW), "format", "arrow is for datasets, not for sources"
    yield not (made.is_global and made.with_deleted), "with_deleted", "a source has no deleted rows"


def _rules_of_handlers(handler: Any) -> Iterable[tuple[bool, str, str]]:  # noqa: ANN401 (whatever was decorated)
    yield callable(handler), "handler", "must be a function"
    called = _called(handler)
    is_generator = inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called)
    yield not is_generator, "handler", "must return, not yield"
    yield _takes_one(handler), "handler", "must take exactly one argument, the batch"


def _is_a(value: object, kind: Any) -> bool:  # noqa: ANN401 (a class or a union of them)
    # To Python, True is a whole number; to whoever reads a definition it is a slip.
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _called(handler: Any) -> Any:  # noqa: ANN401 (whatever was decorated)
    """The function that runs when a handler is called: a partial's own, an object's `__call__`."""
    while isinstance(handler, partial):
        handler = handler.func
    return handler if inspect.isroutine(handler) else type(handler).__call__


def _likeness(value: Any) -> object:  # noqa: ANN401 (a handler, a source, or what one is made of)
    """Something that is equal for what the same lines of a module make, though it be loaded twice."""
    if isinstance(value, partial):
        return (_likeness(value.func), value.args, value.keywords)
    if inspect.isroutine(value) or isinstance(value, type):
        return (value.__module__, value.__qualname__)
    if is_dataclass(value):
        return (_likeness(type(value)), *(_likeness(getattr(value, field.name)) for field in fields(value)))
    return value if isinstance(value, str | int | tuple | None) else _likeness(type(value))


def _takes_one(handler: Callable[..., Any]) -> bool:
    try:
        inspect.signature(handler).bind(None)
    except (TypeError, ValueError):
        return False
    return True


def _names(regions: object) -> tuple[str, ...]:
    """A text is a sequence too, of letters: it is refused."""
    if isinstance(regions, Sequence) and not isinstance(regions, str):
        names = cast("tuple[object, ...]", tuple(regions))
        if all(isinstance(name, str) for name in names):
            return cast("tuple[str, ...]", names)
    raise InvalidJob("regions: must be a list of names, such as ['EU']", field_name="regions")


def _one_of(kind: type[StrEnum], value: object, argument: str) -> Any:  # noqa: ANN401 (a member of the enumeration)
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(str(member)) for member in kind)
        raise InvalidJob(f"{argument}: must be one of {known}", field_name=argument) from None


def _register(made: Job) -> Job:
    known = _registered.get(made.name)
    if known is not None and known.identity != made.identity:
        raise JobConflict(f"two jobs are called {made.name}, and they are not the same", field_name="name")
    _registered[made.name] = made
    return made
