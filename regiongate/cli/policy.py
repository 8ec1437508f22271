"""`regiongate policy`: check, plan, apply and read the rules.

`validate`, `schema` and `explain --file` need no gateway. A document is always read and checked here first, so that
findings name the file, line and column as the author sees them.
"""

from __future__ import annotations

import getpass
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from policy.findings import Finding, Severity
from policy.model import Operation
from regiongate.cli.calls import gateway_channel
from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
from regiongate.cli.failures import CommandFailed
from regiongate.cli.output import Output, OutputOption, emit_json, emit_rows, say

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from policy.compile import Policy
    from policy.loading import LoadedPolicy
    from regiongate.v1 import policy_service_pb2 as pb
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check, plan, apply and read the rules.")

PathArgument = Annotated[Path, typer.Argument(exists=True, help="A policy file, or a folder of them.")]
_APPLY_SECONDS = 45.0
_ROLLOUT_SECONDS = 600.0
_SHOWN_SHARDS = 20
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}


@app.command()
def validate(path: PathArgument, output: OutputOption = Output.TABLE) -> None:
    """Check a document by itself: nothing is contacted, nothing is stored."""
    from policy.errors import PolicyRejected  # noqa: PLC0415 (keeps --help lean)
    from policy.loading import load_policy_files  # noqa: PLC0415

    try:
        findings, is_rejected = load_policy_files(path).findings, False
    except PolicyRejected as error:
        findings, is_rejected = error.findings, True
    if output is Output.JSON:
        emit_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            typer.echo(str(finding))
    if is_rejected:
        say("rejected", _STYLES[Severity.ERROR])
        raise typer.Exit(1)
    say("the policy stands")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the document, for editors."""
    from policy.loading import json_schema  # noqa: PLC0415

    emit_json(json_schema())


@app.command()
@with_entry
def plan(entry: Entry, path: PathArgument, *, output: OutputOption = Output.TABLE) -> None:
    """Show what applying a document would do; nothing is stored."""
    loaded = _load(path)
    answer = run_async(_plan(entry, loaded, path))
    if output is Output.JSON:
        emit_json(_plain(answer))
    else:
        _say_findings(answer.findings)
        _print_plan(answer)
    if any(finding.severity == Severity.ERROR for finding in _findings(answer.findings)) or answer.moved:
        say("applying it would be refused", _STYLES[Severity.ERROR])
        raise typer.Exit(1)


@app.command()
@with_entry
def apply(
    entry: Entry,
    path: PathArgument,
    *,
    message: Annotated[str, typer.Option("--message", "-m", help="Why; kept in the history.")] = "",
    author: Annotated[str, typer.Option(help="Who; your login name when empty.", show_default=False)] = "",
    parent: Annotated[
        int | None, typer.Option(min=0, help="The revision that you have read; refused when another is current.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until every new shard is served.")] = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a document the law; returns when every live gateway decides by it."""
    loaded = _load(path)

    async def perform() -> pb.ApplyPolicyResponse:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

        request = pb.ApplyPolicyRequest(
            document=loaded.text, file=str(path), author=author or getpass.getuser(), message=message, parent=parent
        )
        async with _stub(entry) as stub:
            answer = await stub.ApplyPolicy(request, timeout=max(_APPLY_SECONDS, entry.timeout))
            _say_findings(answer.findings)
            say(f"revision {answer.revision} is effective: {_who(answer)}")
            if answer.rollout and wait:
                await _follow(stub, answer.rollout)
            return answer

    answer = run_async(perform())
    if output is Output.JSON:
        emit_json(_plain(answer))
    else:
        typer.echo(answer.revision)


@app.command()
@with_entry
def show(
    entry: Entry,
    revision: Annotated[int, typer.Argument(min=0, help="The current one when left out.")] = 0,
    *,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print a revision's document."""
    record = run_async(_read(entry, revision))
    if output is Output.JSON:
        emit_json(_plain(record))
        return
    about = f": {record.message}" if record.message else ""
    say(f"revision {record.revision} by {record.author or 'nobody named'}, {_time(record)}{about}", "dim")
    typer.echo(record.document, nl=not record.document.endswith("\n"))


@app.command()
@with_entry
def history(
    entry: Entry,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most revisions to list.")] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the revisions, newest first."""

    async def perform() -> list[pb.PolicyRevision]:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

        async with _stub(entry) as stub:
            request = pb.ListPolicyRevisionsRequest(page_size=limit)
            return list((await stub.ListPolicyRevisions(request, timeout=entry.timeout)).revisions)

    rows = [
        {
            "revision": record.revision,
            "parent": record.parent,
            "time": _time(record),
            "author": record.author,
            "message": record.message,
            "rollout": record.rollout,
        }
        for record in run_async(perform())
    ]
    emit_rows(rows, ("revision", "parent", "time", "author", "message", "rollout"), output)


@app.command()
@with_entry
def rollout(
    entry: Entry,
    rollout_id: Annotated[str, typer.Argument(metavar="ROLLOUT", help="All of them when left out.")] = "",
    *,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the rollouts, or follow one until it has ended."""

    async def perform() -> list[pb.Rollout]:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

        async with _stub(entry) as stub:
            if rollout_id:
                return [await _follow(stub, rollout_id)]
            return list((await stub.ListRollouts(pb.ListRolloutsRequest(), timeout=entry.timeout)).rollouts)

    columns = ("rollout", "policy_revision", "state", "shards_done", "shards_total", "note")
    emit_rows([{**_plain(item)} for item in run_async(perform())], columns, output)


@app.command()
@with_entry
def explain(
    entry: Entry,
    dataset: Annotated[str, typer.Argument(help="The dataset, as the policy names it.")],
    region_code: Annotated[str, typer.Argument(help="The RegionCode of the row, such as DE.")],
    *,
    asker: Annotated[str, typer.Option("--from", help="IDC where the call enters; several by comma.")],
    operation: Annotated[Operation, typer.Option(help="What is asked for.")] = Operation.READ,
    revision: Annotated[int, typer.Option(min=0, help="Judge by this revision; the current one when 0.")] = 0,
    file: Annotated[
        Path | None, typer.Option(exists=True, help="Judge by this document instead; no gateway is needed.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell step by step what the policy says of an operation, now or then (law L7)."""
    from policy.explain import explain as explain_by  # noqa: PLC0415

    policy = _policy_of(_load(file), 0) if file else run_async(_stored_policy(entry, revision))
    askers = tuple(part.strip() for part in asker.split(",") if part.strip())
    explanation = explain_by(policy, dataset, region_code, askers, operation, entry.purpose)
    if output is Output.JSON:
        emit_json(
            {
                "decision": asdict(explanation.decision),
                "steps": [step._asdict() for step in explanation.steps],
            }
        )
        return
    for number, step in enumerate(explanation.steps, 1):
        typer.echo(f"{number}. {step.text}")


async def _plan(entry: Entry, loaded: LoadedPolicy, path: Path) -> pb.PlanPolicyResponse:
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    async with _stub(entry) as stub:
        return await stub.PlanPolicy(
            pb.PlanPolicyRequest(document=loaded.text, file=str(path)), timeout=max(_APPLY_SECONDS, entry.timeout)
        )


async def _read(entry: Entry, revision: int) -> pb.PolicyRevision:
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    async with _stub(entry) as stub:
        return (await stub.GetPolicy(pb.GetPolicyRequest(revision=revision), timeout=entry.timeout)).policy


async def _stored_policy(entry: Entry, revision: int) -> Policy:
    from policy.loading import load_policy  # noqa: PLC0415

    record = await _read(entry, revision)
    return _policy_of(load_policy(record.document), record.revision)


def _policy_of(loaded: LoadedPolicy, revision: int) -> Policy:
    from policy.compile import compile_policy  # noqa: PLC0415

    return compile_policy(loaded.document, revision)


async def _follow(stub: PolicyServiceAsyncStub, rollout_id: str) -> pb.Rollout:
    """Shows a rollout's progress on stderr until it has ended."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    from regiongate.cli.output import stderr  # noqa: PLC0415
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    last: pb.Rollout | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=stderr(), transient=True) as progress:
        bar = progress.add_task("shards", total=None, note="")
        request = pb.WatchRolloutRequest(rollout=rollout_id)
        async for answer in stub.WatchRollout(request, timeout=_ROLLOUT_SECONDS):
            last = answer.rollout
            progress.update(bar, total=last.shards_total, completed=last.shards_done, note=last.note)
    if last is None or last.state == "running":
        raise CommandFailed("ROLLOUT_UNFINISHED", f"rollout {rollout_id} has not ended", last.note if last else "")
    say(f"rollout {rollout_id} is {last.state}: {last.shards_done} of {last.shards_total} shards; {last.note}")
    return last


@asynccontextmanager
async def _stub(entry: Entry) -> AsyncGenerator[PolicyServiceAsyncStub]:
    """The policy service of a gateway."""
    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub  # noqa: PLC0415

    async with gateway_channel(entry) as channel:
        yield cast("PolicyServiceAsyncStub", PolicyServiceStub(channel))


def _load(path: Path) -> LoadedPolicy:
    """Reads and checks a document; tells its warnings, and leaves its notes to `validate` and `plan`."""
    from policy.loading import load_policy_files  # noqa: PLC0415

    loaded = load_policy_files(path)
    for finding in loaded.findings:
        if finding.severity is Severity.WARNING:
            say(str(finding), _STYLES[finding.severity])
    return loaded


def _findings(messages: Iterable[pb.Finding]) -> list[Finding]:
    from gateway.status import from_finding_message  # noqa: PLC0415

    return [from_finding_message(message) for message in messages]


def _say_findings(messages: Iterable[pb.Finding]) -> None:
    """Tells what the gateway has found beyond what `_load` has told already."""
    for finding in _findings(messages):
        if finding.severity is Severity.ERROR or not finding.line:
            say(str(finding), _STYLES[finding.severity])


def _print_plan(answer: pb.PlanPolicyResponse) -> None:
    typer.echo(f"from revision {answer.parent}" if answer.parent else "the first policy")
    for title, lines in (
        ("schema", [f"new {change}" for change in answer.schema_changes]),
        ("access", [change.sentence for change in answer.access_changes]),
        ("assigned", _by_region(answer.assigned)),
        ("moved", _by_region(answer.moved)),
    ):
        for line in lines:
            typer.echo(f"{title}: {line}")


def _by_region(changes: Iterable[pb.ShardChange]) -> list[str]:
    counts: dict[tuple[str, str, str], int] = {}
    for change in changes:
        kind = (change.region_code, change.from_idc, change.to_idc)
        counts[kind] = counts.get(kind, 0) + 1
    lines = [
        f"{count} shard{'' if count == 1 else 's'} of {code} {f'from {source} ' if source else ''}to {target}"
        for (code, source, target), count in sorted(counts.items())
    ]
    more = len(lines) - _SHOWN_SHARDS
    return [*lines[:_SHOWN_SHARDS], f"and {more} lines more (-o json shows all)"] if more > 0 else lines


def _who(answer: pb.ApplyPolicyResponse) -> str:
    acknowledged = f"acknowledged by {', '.join(answer.acknowledged)}" if answer.acknowledged else "no gateway is live"
    return acknowledged + (f"; lease run out: {', '.join(answer.expired)}" if answer.expired else "")


def _time(record: pb.PolicyRevision) -> str:
    return record.create_time.ToJsonString()


def _plain(message: Any) -> dict[str, Any]:  # noqa: ANN401 (any protobuf message)
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    plain: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {name: int(value) if name in _NUMBERS else value for name, value in plain.items()}


_NUMBERS = frozenset({"revision", "parent", "policy_revision"})
"""64-bit fields, which JSON's mapping of protobuf writes as strings."""
