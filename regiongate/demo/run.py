"""The demo from beginning to end, as a list of steps that share one state.

Each step does one thing against the running stack and prints what it saw; a fault is collected, not hidden, and the
report at the end fails loudly.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from functools import partial
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import regiongate
from policy.compile import compile_policy
from policy.loading import load_policy_files
from regiongate.cli.output import say, stderr
from regiongate.demo import change, placement, places_job, show, traces
from regiongate.demo.crossings import CROSSINGS, Answer, pick_keys, try_crossing
from regiongate.demo.load import write_places
from regiongate.demo.places import DATASET, Place, load_places
from regiongate.demo.stack import make_folder, new_policy_file, policy_file, running_stack
from regiongate.demo.state import Demo
from runtime.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from policy.compile import Policy
    from runtime.telemetry.spans import SpanRecord

HOME_IDC = "sin"
"""Where the demo's client enters; the traced read crosses from here to the EU."""


async def load_rows(demo: Demo) -> None:
    """Writes every place through the SDK: entered where its country's law is at home, taken on to the owner."""
    show.section(1, f"Load {len(demo.places):,} places through the SDK, each tagged with its country's code")
    columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    start = time.perf_counter()
    with Progress(*columns, console=stderr(), transient=True) as progress:
        async with asyncio.TaskGroup() as group:
            for idc, places in by_entry(demo.policy, demo.places).items():
                task = progress.add_task(f"entering at {idc}", total=len(places))
                group.create_task(_load_at(demo.entry(idc), places, partial(progress.advance, task)))
    seconds = time.perf_counter() - start
    rate = len(demo.places) / seconds
    show.line(f"{len(demo.places):,} rows are durable after {seconds:.1f} s ({rate:,.0f} rows/s)")
    demo.facts["rows written"] = f"{len(demo.places):,} ({rate:,.0f} rows/s)"


def by_entry(policy: Policy, places: Sequence[Place]) -> dict[str, list[Place]]:
    """The places by the IDC where their client enters: one for each jurisdiction, as its customers would."""
    entries: dict[str, str] = {}
    for idc, jurisdiction in policy.idcs.items():
        entries.setdefault(jurisdiction, idc)
    sorted_places: dict[str, list[Place]] = {idc: [] for idc in entries.values()}
    for place in places:
        owner = next(iter(policy.regions[place.region_code].weights))
        sorted_places[entries[policy.idcs[owner]]].append(place)
    return sorted_places


async def _load_at(entry: str, places: Sequence[Place], on_progress: Callable[[int], None]) -> None:
    async with regiongate.connect(entry) as client:
        await write_places(client, places, on_progress)


async def prove_placement(demo: Demo) -> None:
    """Reads every database directly and compares with the policy and the data file."""
    show.section(2, "Read each database directly, past the gateways: which rows lie where")
    stored = await placement.read_databases(demo.databases, DATASET)
    found = placement.judge(demo.policy, demo.places, stored)
    show.placement(found, demo.policy.idcs)
    demo.faults += found.wrong
    demo.facts["rows found in the databases"] = f"{found.total:,}"
    demo.facts["misplaced, missing or doubled"] = str(len(found.wrong)) if found.wrong else "none"


async def cross_borders(demo: Demo) -> None:
    """Reads across borders, and shows by which rule each was decided."""
    show.section(3, "Read across borders: the rule that decides is named in every answer")
    keys = pick_keys(demo.places)
    answers: list[Answer] = []
    for crossing in CROSSINGS:
        async with regiongate.connect(demo.entry(crossing.entry_idc)) as client:
            answers.append(await try_crossing(client, crossing, keys))
    show.crossings(answers, demo.policy.idcs)
    wrong = [answer for answer in answers if not answer.is_expected]
    demo.faults += [f"a read of {a.crossing.region_code} from {a.crossing.entry_idc} was {a.outcome}" for a in wrong]
    denied = sum(answer.outcome == "denied" for answer in answers)
    demo.facts["reads across borders"] = f"{len(answers)} made, {denied} denied, each by the rule expected"


async def show_trace(demo: Demo) -> None:
    """Traces one read that a gateway forwards to another jurisdiction, down to the statement."""
    show.section(4, f"One read from {HOME_IDC}, forwarded to the EU and back, as a trace")
    trace_id = secrets.token_hex(16)
    traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
    tracing = Tracing("client", "", 1.0, demo.data_dir / "traces", "demo")
    try:
        async with regiongate.connect(demo.entry(HOME_IDC), direct=False, tracing=tracing) as client:
            key = pick_keys(demo.places)["DE"]
            await client.get(DATASET, "DE", key, purpose="support", traceparent=traceparent)
    finally:
        tracing.shutdown()
    spans = await traces.wait_for_spans(demo.data_dir, trace_id, _has_crossed)
    traces.show_spans(trace_id, spans)
    idcs = sorted({span.idc for span in spans if span.idc})
    if len(idcs) < 2:
        demo.faults.append("the trace does not reach across two IDCs")
    demo.facts["trace of a read"] = f"{len(spans)} spans, of the client and the gateways in {', '.join(idcs)}"


def _has_crossed(spans: Sequence[SpanRecord]) -> bool:
    """Whether ingress and the owner's statement are among the spans."""
    has_statement = any(span.name.startswith("db.") for span in spans)
    return has_statement and any(span.idc == HOME_IDC for span in spans)


STEPS: tuple[Callable[[Demo], Awaitable[None]], ...] = (
    load_rows,
    prove_placement,
    cross_borders,
    show_trace,
    *change.STEPS,
)


async def run(data_dir: Path | None, *, keep: bool) -> int:
    """Runs the demo; returns the exit code, 0 only when every row lies where its law says."""
    folder = make_folder(data_dir)
    try:
        return await _run_in(folder, keep=keep)
    finally:
        if data_dir is None and not keep:
            shutil.rmtree(folder, ignore_errors=True)
            say("the demo's data is removed; `make demo ARGS=--keep` leaves the stack up")


async def _run_in(folder: Path, *, keep: bool) -> int:
    policy, new_policy = (
        compile_policy(load_policy_files(file).document, revision)
        for revision, file in enumerate((policy_file(), new_policy_file()), 1)
    )
    places = load_places()
    start = time.perf_counter()
    # The IDC of the law to come runs from the start; no rule knows it yet.
    async with running_stack(folder, idcs=tuple(new_policy.idcs), jobs=[places_job.__name__]) as stack:
        demo = Demo(folder, stack, policy, new_policy, places)
        await places_job.make_tables(demo.databases.values())
        demo.facts["IDCs"] = ", ".join(f"{idc} ({new_policy.idcs[idc]})" for idc in stack.idcs)
        demo.facts["ready after"] = f"{time.perf_counter() - start:.1f} s"
        for step in STEPS:
            await step(demo)
        show.section(len(STEPS) + 1, "Report")
        demo.facts["time in all"] = f"{time.perf_counter() - start:.0f} s"
        show.report(demo.facts, demo.faults)
        if keep:
            say(f"the stack goes on with its data in {folder}; Ctrl-C ends it")
            say(f"try, in another shell: .venv/bin/regiongate shards list --data-dir {folder}")
            await asyncio.Event().wait()
    return 1 if demo.faults else 0
