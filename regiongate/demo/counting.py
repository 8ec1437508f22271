"""The demo's job, seen in the end: how it has run while shards moved, and whether all its figures are right.

It has been at work since the first row was written: while clients wrote rows over, and while the United Kingdom's
shards went to London, with what was counted in them.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import grpc.aio

from regiongate.demo import figures, show, traces
from regiongate.demo.places_job import JOB
from regiongate.demo.state import ENTRY_IDC, NEW_IDC
from regiongate.v1 import job_service_pb2 as pb
from regiongate.v1.job_service_pb2_grpc import JobServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from regiongate.demo.state import Demo
    from regiongate.v1.job_service_pb2_grpc import JobServiceAsyncStub
    from runtime.telemetry.spans import SpanRecord

SHOWN = ("CN", "DE", "GB", "JP", "US")
"""Countries whose figures are shown; all are compared."""
CALL_SECONDS = 10.0
CATCH_UP_SECONDS = 30.0
_MOST_RUNS = 1000


@dataclass(frozen=True, slots=True)
class Standing:
    """The job in all IDCs."""

    jobs: Sequence[pb.Job]
    runs: Sequence[pb.JobRun]

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to be counted."""
        return not any(job.shards_behind for job in self.jobs)

    def runs_in(self, idc: str) -> list[pb.JobRun]:
        """An IDC's runs, newest first."""
        return [run for run in self.runs if run.idc == idc]


async def show_job(demo: Demo) -> None:
    """Shows how the job has run, compares its figures with the data file's, and links a run to the rollout."""
    show.section(9, "All the while a job has counted, in each IDC, the places that lie there: is every figure right?")
    show.line(
        "Its results lie and move with their places. Clients have written places over, shards have gone to London,"
    )
    show.line(f"and {demo.put_back:,} places are as in the data file again: each change came to the job once.")
    standing = await _wait_idle(demo)
    counted = await figures.read_figures(demo.databases)
    expected = figures.expected_figures(demo.places)
    wrong = figures.judge(demo.policy, expected, counted)
    show.job(standing, counted)
    show.line("For each country the number of places, the population and the largest place, such as:")
    show.countries(SHOWN, counted, {place.key: str(place.values["name"]) for place in demo.places})
    _judge(demo, standing, expected, wrong)
    await _show_run(demo, standing)


def _judge(demo: Demo, standing: Standing, expected: Mapping[str, figures.Figures], wrong: Sequence[str]) -> None:
    demo.faults += wrong
    if not standing.is_idle:
        demo.faults.append(f"the job has not caught up within {CATCH_UP_SECONDS:g} s")
    places, population = (sum(numbers) for numbers in zip(*(it[:2] for it in expected.values()), strict=True))
    verdict = f"{len(wrong)} are wrong" if wrong else "all equal, to the unit"
    show.line(
        f"Compared with the data file, over all databases: {len(expected)} countries, {places:,} places,"
        f" {population:,} people: {verdict}"
    )
    rows = sum(job.rows_handled for job in standing.jobs)
    demo.facts["figures counted by the job"] = f"{len(expected)} countries, {verdict}"
    demo.facts["changes that it handled"] = f"{rows:,}, in {len(standing.runs)} runs"


async def _show_run(demo: Demo, standing: Standing) -> None:
    """Draws the first run in the new IDC that had rows: it is linked to the rollout that brought it there."""
    told = (run for run in reversed(standing.runs) if run.idc == NEW_IDC and run.result == "ended")
    run = next((run for run in told if run.rows_handled and run.traceparent), None)
    if run is None:
        demo.faults.append(f"no run in {NEW_IDC} has handled rows while shards moved")
        return
    show.line(
        f"A run holds one set of shards, and ends between two batches when that changes. An early one in {NEW_IDC}"
    )
    show.line(f"ended because {run.reason}; it is linked to the rollout's trace, seen in 7:")
    trace_id = run.traceparent.split("-")[1]
    spans = await traces.wait_for_spans(
        demo.data_dir, trace_id, lambda spans: any(it.name == "job.run" for it in spans)
    )
    traces.show_spans(trace_id, first_batches(spans))
    if not any(link.startswith(demo.rollout_trace) for span in spans for link in span.links):
        demo.faults.append("the run's trace is not linked to the rollout's")
    demo.facts["trace of a run"] = f"linked to the rollout's; {run.batches:,} batches"


def first_batches(spans: Sequence[SpanRecord], number: int = 3) -> list[SpanRecord]:
    """The run's own span and its first batches: there may be many."""
    batches = sorted((span for span in spans if span.name == "job.batch"), key=lambda span: span.start_ns)
    return [*(span for span in spans if span.name != "job.batch"), *batches[:number]]


@asynccontextmanager
async def job_stub(address: str) -> AsyncGenerator[JobServiceAsyncStub]:
    """The job service of a gateway."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield cast("JobServiceAsyncStub", JobServiceStub(channel))


async def _wait_idle(demo: Demo) -> Standing:
    """How the job stands once it has caught up, or as far as it has come after a while."""
    loop = asyncio.get_running_loop()
    end = loop.time() + CATCH_UP_SECONDS
    async with job_stub(demo.entry(ENTRY_IDC)) as stub:
        while True:
            listed = await stub.ListJobs(pb.ListJobsRequest(job=JOB), timeout=CALL_SECONDS)
            is_over = loop.time() > end
            if is_over or not (listed.unreachable or any(job.shards_behind for job in listed.jobs)):
                break
            await asyncio.sleep(0.1)
        answer = await stub.ListJobRuns(pb.ListJobRunsRequest(job=JOB, page_size=_MOST_RUNS), timeout=CALL_SECONDS)
    return Standing(list(listed.jobs), list(answer.runs))
