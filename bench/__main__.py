"""Runs the figures, prints the table, writes the summary.

A figure that falls short is marked, and does not fail the run.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import uvloop
from rich.console import Console
from rich.table import Table

from bench.deciding import resolve
from bench.events import policy_effective, policy_event
from bench.harness import OUT, Figure, write_summary
from bench.job_stack import job_stack
from bench.job_times import job_lag, takeover
from bench.jobs import scan, scan_arrow, scan_effects
from bench.move_stack import move_stack
from bench.moves import move_copy, move_errors, move_stall, rollout_throughput
from bench.reads import forward, get_exchange, get_unary, trace_off
from bench.stack import measured_stack
from bench.writes import batch_write, put_exchange
from runtime.telemetry.logs import setup_logging

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.job_stack import JobStack
    from bench.move_stack import MoveStack
    from runtime.stack_file import StackFile

ON_STACK: dict[str, Callable[[StackFile, int], Awaitable[Figure]]] = {
    figure.__name__: figure
    for figure in (
        get_unary,
        get_exchange,
        put_exchange,
        batch_write,
        forward,
        trace_off,
        policy_event,
        policy_effective,
    )
}
MOVING: dict[str, Callable[[MoveStack, int], Awaitable[list[Figure]]]] = {
    figure.__name__: figure for figure in (move_copy, move_stall, move_errors, rollout_throughput)
}
SCANNING: dict[str, Callable[[JobStack, int], Awaitable[list[Figure]]]] = {
    figure.__name__: figure for figure in (scan, scan_arrow, scan_effects)
}
FOLLOWING: dict[str, Callable[[JobStack, int], Awaitable[list[Figure]]]] = {
    figure.__name__: figure for figure in (takeover, job_lag)
}
ALONE: dict[str, Callable[[int], Figure]] = {"resolve": resolve}


def show(figures: list[Figure]) -> None:
    """Prints the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("FIGURE", "OURS", "UNIT", "BASELINE", "BARE", "RATIO", "REACH", ""):
        table.add_column(column, justify="right" if column in ("OURS", "BARE", "RATIO") else "left")
    for figure in figures:
        numbers = f"{figure.value:,.2f}", figure.unit, figure.baseline, f"{figure.baseline_value:,.2f}"
        mark = "[green]reached" if figure.is_reached else "[red]short"
        table.add_row(figure.name, *numbers, f"{figure.ratio:.2f}", figure.reach, mark)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


async def measure(names: list[str], rounds: int) -> list[Figure]:
    """Measures the figures named; those about moves, and those about jobs, on stacks of their own."""
    console = Console(stderr=True)
    figures = [ALONE[name](rounds) for name in names if name in ALONE]
    if any(name in ON_STACK for name in names):
        async with measured_stack() as stack:
            for name in (name for name in names if name in ON_STACK):
                console.print(f"measuring {name}")
                figures.append(await ON_STACK[name](stack, rounds))
                write_summary(figures)
    if any(name in MOVING for name in names):
        async with move_stack() as moving:
            for name in (name for name in names if name in MOVING):
                console.print(f"measuring {name}")
                figures += await MOVING[name](moving, rounds)
                write_summary(figures)
    if any(name in SCANNING or name in FOLLOWING for name in names):
        async with job_stack() as jobs:
            async with jobs.running("bench.job_handlers"):
                for name in (name for name in names if name in SCANNING):
                    console.print(f"measuring {name}")
                    figures += await SCANNING[name](jobs, rounds)
                    write_summary(figures)
            for name in (name for name in names if name in FOLLOWING):
                console.print(f"measuring {name}")
                figures += await FOLLOWING[name](jobs, rounds)
                write_summary(figures)
    return figures


def main() -> None:
    """Parses the command line and runs."""
    known = [*ALONE, *ON_STACK, *MOVING, *SCANNING, *FOLLOWING]
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="figure", help=f"which to measure (all): {', '.join(known)}")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of ours and the baseline (default 7)")
    arguments = parser.parse_args()
    names = arguments.figures or known
    if unknown := set(names) - set(known):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    setup_logging("bench", log_format="console", level="warning")
    figures = uvloop.run(measure(names, arguments.rounds))
    write_summary(figures)
    show(figures)
    print(f"written to {OUT / 'summary.json'}")


if __name__ == "__main__":
    main()
