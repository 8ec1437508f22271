"""`regiongate shards`: who owns what, as a gateway's routing table has it, and orders to move one shard."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
from regiongate.cli.failures import CommandFailed
from regiongate.cli.output import Output, OutputOption, emit_json, emit_rows, say
from regiongate.cli.policy_calls import (
    AuthorOption,
    MessageOption,
    author_or_login,
    counted,
    plain,
    policy_stub,
    trace_metadata,
    traced,
)
from regiongate.cli.rollout_progress import finish_rollout
from regiongate.cli.routes import read_routes

if TYPE_CHECKING:
    from regiongate.v1 import policy_service_pb2 as pb

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show who owns what, and move shards.")

_SHARD = re.compile(r"([^/\s]+)/(\d{1,9})")


@app.command("list")
@with_entry
def list_shards(
    entry: Entry,
    region_code: Annotated[str, typer.Argument(help="Only this RegionCode; all when left out.")] = "",
    *,
    owner: Annotated[str, typer.Option(help="Only shards of this IDC.", show_default=False)] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the shards with their owners, and where they are going."""
    snapshot, moves = run_async(read_routes(entry))
    if region_code and region_code not in {region.region_code for region in snapshot.regions}:
        raise CommandFailed(
            "UNKNOWN_REGION", "no residency rule covers this RegionCode", "see `regiongate policy show`"
        )
    rows: list[dict[str, object]] = []
    for route in snapshot.routes:
        if (region_code and route.region_code != region_code) or (owner and route.idc != owner):
            continue
        move = moves.get((route.region_code, route.shard))
        rows.append(
            {
                "region_code": route.region_code,
                "shard": route.shard,
                "idc": route.idc,
                "epoch": route.epoch,
                "phase": route.phase,
                "target": move.to_idc if move else "",
                "attempt": move.attempt or "" if move else "",
            }
        )
    columns = ("region_code", "shard", "idc", "epoch", "phase", "target", "attempt")
    emit_rows(rows, columns if any(row["target"] for row in rows) else columns[:5], output)
    say(f"{counted(len(rows))}, by policy revision {snapshot.policy_revision}", "dim")


@app.command("move")
@with_entry
def move_shard(
    entry: Entry,
    shard: Annotated[str, typer.Argument(metavar="REGION/NUMBER", help="Such as DE/3.")],
    *,
    to: Annotated[str, typer.Option("--to", help="The IDC that is to own it.")],
    message: MessageOption = "",
    author: AuthorOption = "",
    wait: Annotated[bool, typer.Option(help="Wait until it is there, and show how it goes.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move one shard to another IDC that the law permits, as a rollout of its own."""
    match = _SHARD.fullmatch(shard)
    if match is None:
        raise typer.BadParameter("a shard is written REGION/NUMBER, such as DE/3", param_hint="REGION/NUMBER")

    async def perform() -> pb.MoveShardResponse:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415 (grpc takes 100 ms to load)

        request = pb.MoveShardRequest(
            region_code=match[1], shard=int(match[2]), to_idc=to, author=author_or_login(author), message=message
        )
        with traced(entry, "cli.shards.move") as traceparent:
            async with policy_stub(entry) as stub:
                answer = await stub.MoveShard(request, timeout=entry.timeout, metadata=trace_metadata(traceparent))
            if wait:
                await finish_rollout(entry, answer.rollout)
            return answer

    answer = run_async(perform())
    if output is Output.JSON:
        emit_json(plain(answer))
    else:
        typer.echo(answer.rollout)
