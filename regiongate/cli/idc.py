"""`regiongate idc`: the data centres, and how to empty one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
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
from regiongate.cli.routes import read_drained, read_routes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from regiongate.v1 import policy_service_pb2 as pb

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show the data centres, and empty one.")

IdcArgument = Annotated[str, typer.Argument(metavar="NAME", help="The IDC, as the policy names it.")]


@app.command("list")
@with_entry
def list_idcs(entry: Entry, *, output: OutputOption = Output.TABLE) -> None:
    """List the IDCs: law, live gateways, shards owned, leaving and coming, and whether it is drained."""
    snapshot, moves = run_async(read_routes(entry))
    drained = run_async(read_drained(entry))
    owned = Counter(route.idc for route in snapshot.routes)
    leaving = Counter(move.from_idc for move in moves.values())
    coming = Counter(move.to_idc for move in moves.values())
    rows = [
        {
            "idc": idc.idc,
            "jurisdiction": idc.jurisdiction,
            "gateways": list(idc.endpoints),
            "shards": owned[idc.idc],
            "leaving": leaving[idc.idc],
            "coming": coming[idc.idc],
            "drained": "yes" if idc.idc in drained else "",
        }
        for idc in snapshot.idcs
    ]
    emit_rows(rows, ("idc", "jurisdiction", "gateways", "shards", "leaving", "coming", "drained"), output)


@app.command()
@with_entry
def drain(
    entry: Entry,
    name: IdcArgument,
    *,
    message: MessageOption = "",
    author: AuthorOption = "",
    wait: Annotated[bool, typer.Option(help="Wait until nothing more can leave, and show how it goes.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Empty an IDC as far as the law lets its shards go elsewhere, and assign it none until it is undrained."""

    async def perform() -> pb.DrainIdcResponse:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415 (grpc takes 100 ms to load)

        request = pb.DrainIdcRequest(idc=name, author=author_or_login(author), message=message)
        with traced(entry, "cli.idc.drain") as traceparent:
            async with policy_stub(entry) as stub:
                answer = await stub.DrainIdc(request, timeout=entry.timeout, metadata=trace_metadata(traceparent))
            _say_stuck(name, answer.stuck)
            if not answer.rollout:
                say(f"{name} is drained: nothing there can go elsewhere")
            elif wait:
                await finish_rollout(entry, answer.rollout)
            else:
                say(f"{counted(len(answer.moved))} will move: regiongate policy rollout watch {answer.rollout}")
            return answer

    answer = run_async(perform())
    if output is Output.JSON:
        emit_json(plain(answer))
    elif answer.rollout:
        typer.echo(answer.rollout)


@app.command()
@with_entry
def undrain(entry: Entry, name: IdcArgument, *, author: AuthorOption = "") -> None:
    """Let an IDC be assigned shards again; moves none back."""

    async def perform() -> None:
        from regiongate.v1 import policy_service_pb2 as pb  # noqa: PLC0415

        request = pb.UndrainIdcRequest(idc=name, author=author_or_login(author))
        async with policy_stub(entry) as stub:
            await stub.UndrainIdc(request, timeout=entry.timeout)

    run_async(perform())
    say(f"{name} may be assigned shards again; `regiongate policy apply FILE --rebalance` spreads them by the weights")


def _say_stuck(name: str, stuck: Iterable[pb.StuckShards]) -> None:
    for item in stuck:
        say(f"{counted(len(item.shards))} of {item.region_code} must stay in {name}: {item.reason}", "yellow")
