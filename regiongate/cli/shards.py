"""`regiongate shards`: who owns what, as a gateway's routing table has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from regiongate.cli.calls import gateway_channel
from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
from regiongate.cli.failures import CommandFailed
from regiongate.cli.output import Output, OutputOption, emit_rows, say

if TYPE_CHECKING:
    from regiongate.v1 import routing_service_pb2 as pb
    from regiongate.v1.routing_service_pb2_grpc import RoutingServiceAsyncStub

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show who owns what.")


@app.callback()
def shards() -> None:
    """Show who owns what."""


@app.command("list")
@with_entry
def list_shards(
    entry: Entry,
    region_code: Annotated[str, typer.Argument(help="Only this RegionCode; all when left out.")] = "",
    *,
    owner: Annotated[str, typer.Option(help="Only shards of this IDC.", show_default=False)] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the shards with their owners."""
    snapshot = run_async(_snapshot(entry))
    rows = [
        {
            "region_code": route.region_code,
            "shard": route.shard,
            "idc": route.idc,
            "epoch": route.epoch,
            "phase": route.phase,
        }
        for route in snapshot.routes
        if (not region_code or route.region_code == region_code) and (not owner or route.idc == owner)
    ]
    emit_rows(rows, ("region_code", "shard", "idc", "epoch", "phase"), output)
    say(f"{len(rows)} shards, by policy revision {snapshot.policy_revision}", "dim")


async def _snapshot(entry: Entry) -> pb.WatchRoutesResponse:
    from regiongate.v1 import routing_service_pb2 as pb  # noqa: PLC0415 (grpc takes 100 ms to load; --help needs none)
    from regiongate.v1.routing_service_pb2_grpc import RoutingServiceStub  # noqa: PLC0415

    async with gateway_channel(entry) as channel:
        stub = cast("RoutingServiceAsyncStub", RoutingServiceStub(channel))
        call = stub.WatchRoutes(pb.WatchRoutesRequest(), timeout=entry.timeout)
        async for answer in call:
            call.cancel()
            return answer
    raise CommandFailed("NO_ROUTES", "the gateway has not told its routes")
