"""`regiongate policy rollout`: what was set in motion, how far it is, and how to stop it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
from regiongate.cli.output import Output, OutputOption, emit_json, emit_rows, say
from regiongate.cli.policy_calls import AuthorOption, author_or_login, counted, plain, policy_stub, time_text
from regiongate.cli.rollout_progress import follow_rollout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regiongate.v1 import policy_service_pb2 as pb

_ROLLOUT_ID = re.compile(r"[rmd]\d{8,}")
_HELP = ("--help", "-h")
_COLUMNS = ("rollout", "kind", "state", "shards_done", "shards_total", "create_time", "author", "note")
_MOVE_COLUMNS = (
    "shard", "from_idc", "to_idc", "phase", "attempt", "rows_copied", "rows_per_second", "remaining", "stall_ms",
    "required_by_law", "note",
)  # fmt: skip

RolloutArgument = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Such as r00000002; see `rollout list`.")]


class RolloutGroup(TyperGroup):
    """Without a command it lists; with a rollout only, it watches that one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (typer's context type is private)
        """Puts in the command that is meant."""
        if not args or (args[0].startswith("-") and args[0] not in _HELP):
            args = ["list", *args]
        elif _ROLLOUT_ID.fullmatch(args[0]):
            args = ["watch", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RolloutGroup,
    add_completion=False,
    help="List, show, watch and stop rollouts. Without a command: list; with a rollout only: watch it.",
)


@app.command("list")
@with_entry
def list_rollouts(
    entry: Entry,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rollouts to list.")] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the rollouts, newest first."""

    async def perform() -> list[pb.Rollout]:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415 (grpc takes 100 ms to load)

        async with policy_stub(entry) as stub:
            answer = await stub.ListRollouts(pb.ListRolloutsRequest(page_size=limit), timeout=entry.timeout)
            return list(answer.rollouts)

    rows = [{**plain(item), "create_time": time_text(item)} for item in run_async(perform())]
    emit_rows(rows, _COLUMNS, output)


@app.command()
@with_entry
def show(entry: Entry, rollout: RolloutArgument, *, output: OutputOption = Output.TABLE) -> None:
    """Show a rollout with each of its moves."""

    async def perform() -> pb.Rollout:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

        async with policy_stub(entry) as stub:
            return (await stub.GetRollout(pb.GetRolloutRequest(rollout=rollout), timeout=entry.timeout)).rollout

    _print(run_async(perform()), output)


@app.command()
@with_entry
def watch(entry: Entry, rollout: RolloutArgument, *, output: OutputOption = Output.TABLE) -> None:
    """Follow a rollout until it has ended; exits with 1 when it was cancelled or superseded."""
    last = run_async(follow_rollout(entry, rollout))
    if output is Output.JSON:
        emit_json(plain(last))
    else:
        emit_rows([plain(last)], ("rollout", "policy_revision", "state", "shards_done", "shards_total", "note"), output)
    if last.state != "done":
        raise typer.Exit(1)


@app.command()
@with_entry
def cancel(
    entry: Entry, rollout: RolloutArgument, *, author: AuthorOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Call off what has not passed its switch and is not demanded by law; tells what goes on."""

    async def perform() -> pb.CancelRolloutResponse:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

        request = pb.CancelRolloutRequest(rollout=rollout, author=author_or_login(author))
        async with policy_stub(entry) as stub:
            return await stub.CancelRollout(request, timeout=entry.timeout)

    answer = run_async(perform())
    if output is Output.JSON:
        emit_json(plain(answer))
        return
    by_law = sum(move.required_by_law for move in answer.going_on)
    say(f"rollout {rollout} is being cancelled")
    if answer.rollout.kind == "drain":
        say("the IDC stays drained, so the next policy moves its shards; `regiongate idc undrain NAME` ends that")
    if answer.going_on:
        say(
            f"{counted(len(answer.going_on), 'move')} will go on: {by_law} because the law demands it, "
            f"{len(answer.going_on) - by_law} because the shard has its new owner already"
        )
    _print_moves(answer.going_on, output)


@app.command()
@with_entry
def pause(entry: Entry, rollout: RolloutArgument, *, output: OutputOption = Output.TABLE) -> None:
    """Let no further move begin; what is under way goes on to its end."""

    async def perform() -> pb.Rollout:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

        async with policy_stub(entry) as stub:
            return (await stub.PauseRollout(pb.PauseRolloutRequest(rollout=rollout), timeout=entry.timeout)).rollout

    _print(run_async(perform()), output)


@app.command()
@with_entry
def resume(entry: Entry, rollout: RolloutArgument, *, output: OutputOption = Output.TABLE) -> None:
    """Let a paused rollout go on."""

    async def perform() -> pb.Rollout:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

        async with policy_stub(entry) as stub:
            return (await stub.ResumeRollout(pb.ResumeRolloutRequest(rollout=rollout), timeout=entry.timeout)).rollout

    _print(run_async(perform()), output)


def _print(rollout: pb.Rollout, output: Output) -> None:
    if output is Output.JSON:
        emit_json(plain(rollout))
        return
    about = f", by {rollout.author}" if rollout.author else ""
    about += f": {rollout.message}" if rollout.message else ""
    say(
        f"rollout {rollout.rollout} ({rollout.kind}, policy revision {rollout.policy_revision}{about}) is "
        f"{rollout.state}: {rollout.shards_done} of {counted(rollout.shards_total)}; {rollout.note}"
    )
    if rollout.traceparent:
        say(f"trace: regiongate trace show {rollout.traceparent.split('-')[1]}", "dim")
    _print_moves(rollout.moves, output)


def _print_moves(moves: Iterable[pb.ShardMove], output: Output) -> None:
    rows = [
        {
            **plain(move),
            "shard": f"{move.region_code}/{move.shard}",
            "rows_per_second": round(move.rows_per_second),
            "stall_ms": round(move.stall_ms, 1) if move.stall_ms else "",
            "required_by_law": "yes" if move.required_by_law else "",
        }
        for move in moves
    ]
    if rows:
        emit_rows(rows, _MOVE_COLUMNS, output)
