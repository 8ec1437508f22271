"""Alternating rounds, process CPU, and the summary.

A figure is a coroutine that yields pairs (ours, baseline), one for each round; everything else is the same for all.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True, slots=True)
class Reach:
    """What a figure should reach: at least or at most a limit, on the ratio or on the value."""

    limit: float
    at_least: bool
    on_value: bool = False

    def __str__(self) -> str:
        return f"{'value' if self.on_value else 'ratio'} {'>=' if self.at_least else '<='} {self.limit:g}"

    def is_met(self, value: float, ratio: float) -> bool:
        """Whether a measured figure keeps it."""
        measured = self.value_of(value, ratio)
        return measured >= self.limit if self.at_least else measured <= self.limit

    def value_of(self, value: float, ratio: float) -> float:
        """The number that the limit is about."""
        return value if self.on_value else ratio


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure: medians over the rounds."""

    name: str
    value: float
    unit: str
    baseline: str
    baseline_value: float
    ratio: float
    reach: str
    is_reached: bool


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the same thing measured on ours and on the baseline, right after each other."""

    ours: float
    baseline: float


def summarise(name: str, unit: str, baseline: str, reach: Reach, rounds: list[Round]) -> Figure:
    """Takes the medians; the ratio is the median of the rounds' ratios."""
    value = statistics.median(r.ours for r in rounds)
    ratio = statistics.median(r.ours / r.baseline for r in rounds)
    base = statistics.median(r.baseline for r in rounds)
    return Figure(name, value, unit, baseline, base, ratio, str(reach), reach.is_met(value, ratio))


async def alternate(
    rounds: int, ours: Callable[[], Awaitable[float]], baseline: Callable[[], Awaitable[float]]
) -> list[Round]:
    """Runs a warm-up of each, then rounds of both in turn; which one goes first alternates as well."""
    await ours()
    await baseline()
    measured: list[Round] = []
    for number in range(rounds):
        if number % 2:
            base, value = await baseline(), await ours()
        else:
            value, base = await ours(), await baseline()
        measured.append(Round(value, base))
    return measured


async def drive(callers: int, seconds: float, call: Callable[[int], Awaitable[object]]) -> tuple[int, float]:
    """Keeps `callers` calls in flight for a while; returns how many ended and the seconds that it took.

    Args:
        callers: How many run at once, each one call after the other.
        seconds: How long new calls are started.
        call: Makes one call; it gets a number that is never used twice in one drive.
    """
    start = time.perf_counter()
    end = start + seconds
    done = 0

    async def caller(first: int) -> None:
        nonlocal done
        number = first
        while time.perf_counter() < end:
            await call(number)
            number += callers
            done += 1

    async with asyncio.TaskGroup() as group:
        for index in range(callers):
            group.create_task(caller(index))
    return done, time.perf_counter() - start


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads so far, in seconds, to the nanosecond where the kernel tells."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def write_summary(figures: list[Figure]) -> Path:
    """Writes `summary.json`, replacing figures of the same name and keeping the others."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "summary.json"
    known: list[dict[str, object]] = json.loads(path.read_text()) if path.exists() else []
    fresh = {figure.name for figure in figures}
    kept = [entry for entry in known if entry["name"] not in fresh]
    path.write_text(json.dumps(kept + [asdict(figure) for figure in figures], indent=2) + "\n")
    return path
