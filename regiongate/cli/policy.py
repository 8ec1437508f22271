"""`regiongate policy`: check, plan, apply and read the rules.

`validate`, `schema` and `explain --file` need no gateway. A document is always read and checked here first, so that
findings name the file, line and column as the author sees them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from policy.findings import Severity
from policy.model import Operation
from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
from regiongate.cli.failures import CommandFailed
from regiongate.cli.output import Output, OutputOption, emit_json, emit_rows, say
from regiongate.cli.plan_text import plan_lines
from regiongate.cli.policy_calls import (
    APPLY_SECONDS,
    STYLES,
    AuthorOption,
    MessageOption,
    PathArgument,
    RebalanceOption,
    author_or_login,
    findings_of,
    load_document,
    plain,
    policy_stub,
    say_findings,
    time_text,
    trace_metadata,
    traced,
)
from regiongate.cli.rollout import app as rollout_app
from regiongate.cli.rollout_progress import finish_rollout

if TYPE_CHECKING:
    from policy.compile import Policy
    from policy.loading import LoadedPolicy
    from regiongate.v1 import policy_service_pb2 as pb

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check, plan, apply and read the rules.")
app.add_typer(rollout_app, name="rollout")

WaitOption = Annotated[bool, typer.Option(help="Wait until every shard is where it is to be, and show how it goes.")]


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
        say("rejected", STYLES[Severity.ERROR])
        raise typer.Exit(1)
    say("the policy stands")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the document, for editors."""
    from policy.loading import json_schema  # noqa: PLC0415

    emit_json(json_schema())


@app.command()
@with_entry
def plan(
    entry: Entry, path: PathArgument, *, rebalance: RebalanceOption = False, output: OutputOption = Output.TABLE
) -> None:
    """Show what applying a document would do; nothing is stored.

    Exits with 0 when applying it would work now. Keep the JSON form (-o json) for `apply --plan`.
    """
    loaded = load_document(path)
    answer = run_async(_plan(entry, loaded.text, str(path), rebalance=rebalance))
    _show_plan(answer, loaded, output)
    if _is_refused(answer):
        raise typer.Exit(1)


@app.command()
@with_entry
def apply(
    entry: Entry,
    path: PathArgument,
    *,
    message: MessageOption = "",
    author: AuthorOption = "",
    parent: Annotated[
        int | None, typer.Option(min=0, help="The revision that you have read; refused when another is current.")
    ] = None,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", exists=True, dir_okay=False, help="A plan from `plan -o json`: do that or nothing."),
    ] = None,
    rebalance: RebalanceOption = False,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a document the law, and move what has to move.

    The law is in force when every live gateway decides by it; shards move after that.
    """
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415 (grpc takes 100 ms to load; --help needs none)

    loaded = load_document(path)
    request = pb.ApplyPolicyRequest(
        document=loaded.text,
        file=str(path),
        author=author_or_login(author),
        message=message,
        parent=parent,
        rebalance=rebalance,
        plan_fingerprint=_fingerprint(plan_file) if plan_file else "",
    )
    _apply(entry, request, wait=wait, output=output)


@app.command()
@with_entry
def rollback(
    entry: Entry,
    revision: Annotated[int, typer.Argument(min=0, help="The parent of the current one when left out.")] = 0,
    *,
    message: MessageOption = "",
    author: AuthorOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask after showing the plan.")] = False,
    wait: WaitOption = True,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make an old document the law again, as a new revision; shows the plan first."""
    from policy.loading import load_policy  # noqa: PLC0415
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    current = run_async(_read(entry, 0))
    number = revision or current.parent
    if number in (0, current.revision):
        raise CommandFailed("NOTHING_TO_ROLL_BACK", f"revision {current.revision} has no other one to go back to")
    old = run_async(_read(entry, number))
    name = f"revision {number}"
    answer = run_async(_plan(entry, old.document, name))
    _show_plan(answer, load_policy(old.document, name), Output.TABLE, is_talk=output is Output.JSON)
    if _is_refused(answer):
        raise typer.Exit(1)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"make the document of {name} the law?", abort=True, err=True)
    request = pb.ApplyPolicyRequest(
        document=old.document,
        file=name,
        author=author_or_login(author),
        message=message or f"rollback to {name}",
        parent=current.revision,
    )
    _apply(entry, request, wait=wait, output=output)


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
        emit_json(plain(record))
        return
    about = f": {record.message}" if record.message else ""
    say(f"revision {record.revision} by {record.author or 'nobody named'}, {time_text(record)}{about}", "dim")
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

        async with policy_stub(entry) as stub:
            request = pb.ListPolicyRevisionsRequest(page_size=limit)
            return list((await stub.ListPolicyRevisions(request, timeout=entry.timeout)).revisions)

    rows = [
        {
            "revision": record.revision,
            "parent": record.parent,
            "time": time_text(record),
            "author": record.author,
            "message": record.message,
            "rollout": record.rollout,
        }
        for record in run_async(perform())
    ]
    emit_rows(rows, ("revision", "parent", "time", "author", "message", "rollout"), output)


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

    policy = _policy_of(load_document(file), 0) if file else run_async(_stored_policy(entry, revision))
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


def _apply(entry: Entry, request: pb.ApplyPolicyRequest, *, wait: bool, output: Output) -> None:
    """Applies a document, prints its revision, and follows what it has set in motion."""

    async def perform() -> pb.ApplyPolicyResponse:
        with traced(entry, "cli.policy.apply") as traceparent:
            async with policy_stub(entry) as stub:
                answer = await stub.ApplyPolicy(
                    request, timeout=max(APPLY_SECONDS, entry.timeout), metadata=trace_metadata(traceparent)
                )
            say_findings(answer.findings)
            say(f"revision {answer.revision} is effective: {_who(answer)}")
            if answer.rollout and wait:
                await finish_rollout(entry, answer.rollout)
            elif answer.rollout:
                say(f"rollout: regiongate policy rollout watch {answer.rollout}")
            return answer

    answer = run_async(perform())
    if output is Output.JSON:
        emit_json(plain(answer))
    else:
        typer.echo(answer.revision)


async def _plan(entry: Entry, document: str, file: str, *, rebalance: bool = False) -> pb.PlanPolicyResponse:
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    request = pb.PlanPolicyRequest(document=document, file=file, rebalance=rebalance)
    async with policy_stub(entry) as stub:
        return await stub.PlanPolicy(request, timeout=max(APPLY_SECONDS, entry.timeout))


def _show_plan(answer: pb.PlanPolicyResponse, loaded: LoadedPolicy, output: Output, *, is_talk: bool = False) -> None:
    if output is Output.JSON:
        emit_json(plain(answer))
        return
    say_findings(answer.findings)
    for line in plan_lines(answer, len(loaded.document.expect)):
        typer.echo(line, err=is_talk)


def _is_refused(answer: pb.PlanPolicyResponse) -> bool:
    is_refused = any(finding.severity == Severity.ERROR for finding in findings_of(answer.findings))
    if is_refused:
        say("applying it would be refused", STYLES[Severity.ERROR])
    return is_refused


def _fingerprint(path: Path) -> str:
    """Of a plan that was saved."""
    try:
        saved = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
        fingerprint = str(saved["fingerprint"])
    except (ValueError, KeyError, TypeError, OSError):
        fingerprint = ""
    if not fingerprint:
        raise CommandFailed("BAD_PLAN", f"{path} is not a plan", "make one with `regiongate policy plan FILE -o json`")
    return fingerprint


async def _read(entry: Entry, revision: int) -> pb.PolicyRevision:
    from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

    async with policy_stub(entry) as stub:
        return (await stub.GetPolicy(pb.GetPolicyRequest(revision=revision), timeout=entry.timeout)).policy


async def _stored_policy(entry: Entry, revision: int) -> Policy:
    from policy.loading import load_policy  # noqa: PLC0415

    record = await _read(entry, revision)
    return _policy_of(load_policy(record.document), record.revision)


def _policy_of(loaded: LoadedPolicy, revision: int) -> Policy:
    from policy.compile import compile_policy  # noqa: PLC0415

    return compile_policy(loaded.document, revision)


def _who(answer: pb.ApplyPolicyResponse) -> str:
    acknowledged = f"acknowledged by {', '.join(answer.acknowledged)}" if answer.acknowledged else "no gateway is live"
    return acknowledged + (f"; lease run out: {', '.join(answer.expired)}" if answer.expired else "")
