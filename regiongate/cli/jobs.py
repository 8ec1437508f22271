"""`regiongate jobs`: the jobs of all IDCs, as any gateway tells them, and orders to them.

Rows that were set aside are told inside their IDC only: `set-aside` enters by the gateway of one, and shows what is
there.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from policy.wording import join
from regiongate.cli.calls import gateway_channel
from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
from regiongate.cli.jobs_run import add_run
from regiongate.cli.jobs_text import (
    LIST_COLUMNS,
    OFFSET_COLUMNS,
    RUN_COLUMNS,
    STATUS_COLUMNS,
    job_row,
    offset_row,
    problems,
    run_row,
    when,
)
from regiongate.cli.output import Output, OutputOption, emit_json, emit_rows, say
from regiongate.cli.policy_calls import (
    AuthorOption,
    MessageOption,
    author_or_login,
    counted,
    plain,
    trace_metadata,
    traced,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from regiongate.v1 import job_service_pb2 as pb
    from regiongate.v1.job_service_pb2_grpc import JobServiceAsyncStub

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Show the jobs of all data centres, and give them orders."
)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its name.")]
InOption = Annotated[
    list[str] | None,
    typer.Option(
        "--in", metavar="IDC", help="Only in this IDC; again for more. All when left out.", show_default=False
    ),
]
RegionOption = Annotated[
    str, typer.Option("--region", metavar="CODE", help="Only this RegionCode; all when left out.", show_default=False)
]


@app.command("list")
@with_entry
def list_jobs(entry: Entry, *, idcs: InOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the jobs of each IDC: who runs them, how far behind they are, when they last got on."""

    async def perform() -> pb.ListJobsResponse:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415 (grpc takes 100 ms to load; --help needs none)

        async with _stub(entry) as stub:
            return await stub.ListJobs(pb.ListJobsRequest(idcs=idcs or ()), timeout=entry.timeout)

    answer = run_async(perform())
    if output is Output.JSON:
        emit_json([_plain_job(job) for job in answer.jobs])
    else:
        emit_rows([job_row(job) for job in answer.jobs], LIST_COLUMNS, output)
    _say_unreachable(answer.unreachable)


@app.command()
@with_entry
def status(
    entry: Entry,
    job: JobArgument,
    *,
    idcs: InOption = None,
    number: Annotated[int, typer.Option("--runs", min=1, max=1000, help="How many runs of each IDC to show.")] = 5,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one job: how it stands in each IDC, its newest runs, and what somebody should look at."""

    async def perform() -> tuple[pb.ListJobsResponse, pb.ListJobOffsetsResponse, pb.ListJobRunsResponse]:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415

        where, timeout = idcs or (), entry.timeout
        async with _stub(entry) as stub:
            return (
                await stub.ListJobs(pb.ListJobsRequest(job=job, idcs=where), timeout=timeout),
                await stub.ListJobOffsets(pb.ListJobOffsetsRequest(job=job, idcs=where), timeout=timeout),
                await stub.ListJobRuns(pb.ListJobRunsRequest(job=job, idcs=where, page_size=number), timeout=timeout),
            )

    known, offsets, runs = run_async(perform())
    unreachable = sorted({*known.unreachable, *offsets.unreachable, *runs.unreachable})
    found = list(problems(known.jobs, offsets.offsets, runs.runs, unreachable))
    if output is Output.JSON:
        jobs = [_plain_job(each) for each in known.jobs]
        emit_json({"jobs": jobs, "runs": [plain(run) for run in runs.runs], "problems": found})
        return
    emit_rows([job_row(each) for each in known.jobs], STATUS_COLUMNS, output)
    if runs.runs:
        typer.echo()
        emit_rows([run_row(run) for run in runs.runs], RUN_COLUMNS, output)
    if found:
        typer.echo()
    for sentence in found:
        typer.echo(f"problem: {sentence}")


@app.command()
@with_entry
def offsets(
    entry: Entry,
    job: JobArgument,
    *,
    region: RegionOption = "",
    idcs: InOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show how far a job is in each shard."""

    async def perform() -> pb.ListJobOffsetsResponse:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415

        request = pb.ListJobOffsetsRequest(job=job, idcs=idcs or (), region_code=region)
        async with _stub(entry) as stub:
            return await stub.ListJobOffsets(request, timeout=entry.timeout)

    answer = run_async(perform())
    if output is Output.JSON:
        emit_json([plain(offset) for offset in answer.offsets])
    else:
        emit_rows([offset_row(offset) for offset in answer.offsets], OFFSET_COLUMNS, output)
    _say_unreachable(answer.unreachable)


@app.command()
@with_entry
def runs(
    entry: Entry,
    job: JobArgument,
    *,
    idcs: InOption = None,
    number: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most runs of each IDC.")] = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the runs of a job, newest first."""

    async def perform() -> pb.ListJobRunsResponse:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415

        request = pb.ListJobRunsRequest(job=job, idcs=idcs or (), page_size=number)
        async with _stub(entry) as stub:
            return await stub.ListJobRuns(request, timeout=entry.timeout)

    answer = run_async(perform())
    if output is Output.JSON:
        emit_json([plain(run) for run in answer.runs])
    else:
        emit_rows([run_row(run) for run in answer.runs], RUN_COLUMNS, output)
    _say_unreachable(answer.unreachable)


@app.command("set-aside")
@with_entry
def set_aside(
    entry: Entry,
    job: JobArgument,
    *,
    region: RegionOption = "",
    number: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most rows.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List rows that a job could not handle, in the IDC whose gateway is entered (--idc): keys cross no border."""

    async def perform() -> pb.ListSetAsideRowsResponse:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415

        request = pb.ListSetAsideRowsRequest(job=job, region_code=region, page_size=number)
        async with _stub(entry) as stub:
            return await stub.ListSetAsideRows(request, timeout=entry.timeout)

    answer = run_async(perform())
    rows = [plain(row) for row in answer.rows]
    if output is Output.TABLE:
        for shown, row in zip(rows, answer.rows, strict=True):
            shown |= {"set_aside": when(row.set_aside_time), "replay": "wanted" if row.is_replay_wanted else ""}
    columns = ("region_code", "shard", "seq", "key", "attempts", "error_class", "error", "set_aside", "replay")
    emit_rows(rows, columns, output)
    say(f"{counted(answer.total, 'row')} set aside in {answer.idc}, {len(rows):,} shown; other IDCs: --idc", "dim")


@app.command()
@with_entry
def trigger(
    entry: Entry,
    job: JobArgument,
    *,
    idcs: InOption = None,
    message: MessageOption = "",
    author: AuthorOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a batch job make a pass now, once in each IDC."""

    async def perform() -> pb.TriggerJobResponse:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415

        request = pb.TriggerJobRequest(job=job, idcs=idcs or (), author=author_or_login(author), message=message)
        with traced(entry, "cli.jobs.trigger") as traceparent:
            async with _stub(entry) as stub:
                return await stub.TriggerJob(request, timeout=entry.timeout, metadata=trace_metadata(traceparent))

    answer = run_async(perform())
    rows = [{"idc": it.idc, "scheduled_time": it.scheduled_time.ToJsonString()} for it in answer.firings]
    emit_rows(rows, ("idc", "scheduled_time"), output)
    _check_complete(answer.unreachable)


@app.command()
@with_entry
def pause(
    entry: Entry,
    job: JobArgument,
    *,
    idcs: InOption = None,
    message: MessageOption = "",
    author: AuthorOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """End a job's runs at their next batch boundary, and start none until it is resumed."""

    async def perform() -> pb.PauseJobResponse:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415

        request = pb.PauseJobRequest(job=job, idcs=idcs or (), author=author_or_login(author), message=message)
        async with _stub(entry) as stub:
            return await stub.PauseJob(request, timeout=entry.timeout)

    _tell_where(run_async(perform()), f"{job} is paused in", output)


@app.command()
@with_entry
def resume(
    entry: Entry,
    job: JobArgument,
    *,
    idcs: InOption = None,
    message: MessageOption = "",
    author: AuthorOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a job go on, also in shards where it has stopped at a row that kept failing."""

    async def perform() -> pb.ResumeJobResponse:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415

        request = pb.ResumeJobRequest(job=job, idcs=idcs or (), author=author_or_login(author), message=message)
        async with _stub(entry) as stub:
            return await stub.ResumeJob(request, timeout=entry.timeout)

    _tell_where(run_async(perform()), f"{job} may go on in", output)


@app.command()
@with_entry
def replay(
    entry: Entry,
    job: JobArgument,
    *,
    region: RegionOption = "",
    idcs: InOption = None,
    message: MessageOption = "",
    author: AuthorOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Give the rows that were set aside to the job again."""

    async def perform() -> pb.ReplaySetAsideRowsResponse:
        from regiongate.v1 import job_service_pb2 as pb  # noqa: PLC0415

        request = pb.ReplaySetAsideRowsRequest(
            job=job, idcs=idcs or (), region_code=region, author=author_or_login(author), message=message
        )
        async with _stub(entry) as stub:
            return await stub.ReplaySetAsideRows(request, timeout=entry.timeout)

    answer = run_async(perform())
    emit_rows([{"idc": it.idc, "rows": it.rows} for it in answer.idcs], ("idc", "rows"), output)
    _check_complete(answer.unreachable)


@asynccontextmanager
async def _stub(entry: Entry) -> AsyncGenerator[JobServiceAsyncStub]:
    from regiongate.v1.job_service_pb2_grpc import JobServiceStub  # noqa: PLC0415 (grpc takes 100 ms to load)

    async with gateway_channel(entry) as channel:
        yield cast("JobServiceAsyncStub", JobServiceStub(channel))


def _plain_job(job: pb.Job) -> dict[str, Any]:
    shown = plain(job)
    with suppress(ValueError):
        shown["definition"] = json.loads(job.definition)
    return shown


def _tell_where(answer: pb.PauseJobResponse | pb.ResumeJobResponse, sentence: str, output: Output) -> None:
    if output is Output.JSON:
        emit_json(plain(answer))
    else:
        for idc in answer.idcs:
            typer.echo(idc)
    say(f"{sentence} {join(answer.idcs)}")
    _check_complete(answer.unreachable)


def _say_unreachable(idcs: Iterable[str]) -> None:
    for idc in idcs:
        say(f"{idc} cannot be reached: nothing is known of its jobs", "yellow")


def _check_complete(unreachable: Sequence[str]) -> None:
    """Fails when an order may not have come through to every IDC that it was for."""
    for idc in unreachable:
        say(f"{idc} cannot be reached: whether it has got the order is not known", "yellow")
    if unreachable:
        raise typer.Exit(1)


add_run(app)
