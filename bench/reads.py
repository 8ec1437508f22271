"""Figures about reads: unary, over the SDK's stream, forwarded, and with tracing sampled out."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import grpc.aio

import regiongate
from bench.echo import running_echo
from bench.harness import Figure, Reach, alternate, cpu_seconds, drive, summarise
from bench.rows import DATASET, FOREIGN_PURPOSE, FOREIGN_REGION, IDC, REGION, key
from bench.stack import extra_gateway, gateway_pid
from regiongate.v1 import row_service_pb2, row_service_pb2_grpc, types_pb2
from runtime.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.echo import Echo
    from gateway.client import Client
    from runtime.stack_file import StackFile

SECONDS = 1.5
UNARY_CALLERS = 16
CALLERS = 64


def _request(number: int) -> row_service_pb2.GetRowRequest:
    return row_service_pb2.GetRowRequest(dataset=DATASET, region_code=REGION, key=types_pb2.Key(string_key=key(number)))


async def _cpu_microseconds(pid: int, callers: int, call: Callable[[int], Awaitable[object]]) -> float:
    before = cpu_seconds(pid)
    calls, _ = await drive(callers, SECONDS, call)
    return (cpu_seconds(pid) - before) / calls * 1e6


async def _rate(callers: int, call: Callable[[int], Awaitable[object]]) -> float:
    calls, seconds = await drive(callers, SECONDS, call)
    return calls / seconds


def _echo_cpu(echo: Echo) -> Callable[[], Awaitable[float]]:
    async def measure() -> float:
        return await _cpu_microseconds(echo.pid, UNARY_CALLERS, lambda number: echo.call(_request(number)))

    return measure


async def get_unary(stack: StackFile, rounds: int) -> Figure:
    """GetRow of the gateway's own IDC: CPU of the gateway against that of the echo."""
    pid = gateway_pid(stack, IDC)
    async with running_echo() as echo, grpc.aio.insecure_channel(stack.idcs[IDC].gateway) as channel:
        stub = cast("row_service_pb2_grpc.RowServiceAsyncStub", row_service_pb2_grpc.RowServiceStub(channel))

        async def ours() -> float:
            return await _cpu_microseconds(pid, UNARY_CALLERS, lambda number: stub.GetRow(_request(number), timeout=10))

        measured = await alternate(rounds, ours, _echo_cpu(echo))
    return summarise("get_unary", "us CPU", "grpc.aio echo", Reach(1.7, at_least=False), measured)


async def get_exchange(stack: StackFile, rounds: int) -> Figure:
    """SDK get against the unary echo, both with the same callers."""
    async with running_echo() as echo, regiongate.connect(stack.idcs[IDC].gateway) as client:

        async def ours() -> float:
            return await _rate(CALLERS, lambda number: client.get(DATASET, REGION, key(number)))

        async def baseline() -> float:
            return await _rate(CALLERS, lambda number: echo.call(_request(number)))

        measured = await alternate(rounds, ours, baseline)
    return summarise("get_exchange", "calls/s", "grpc.aio echo", Reach(3, at_least=True), measured)


async def forward(stack: StackFile, rounds: int) -> Figure:
    """A read that another IDC owns: CPU of the ingress gateway against that of the echo."""
    pid = gateway_pid(stack, IDC)
    async with running_echo() as echo, regiongate.connect(stack.idcs[IDC].gateway, direct=False) as client:

        async def ours() -> float:
            return await _cpu_microseconds(
                pid,
                UNARY_CALLERS,
                lambda number: client.get(DATASET, FOREIGN_REGION, key(number), purpose=FOREIGN_PURPOSE),
            )

        measured = await alternate(rounds, ours, _echo_cpu(echo))
    return summarise("forward", "us CPU", "grpc.aio echo", Reach(1, at_least=False), measured)


async def trace_off(stack: StackFile, rounds: int) -> Figure:
    """`get_exchange` with tracing set up but nothing sampled, against gateway and client without any tracing."""

    def reader(client: Client) -> Callable[[], Awaitable[float]]:
        async def measure() -> float:
            return await _rate(CALLERS, lambda number: client.get(DATASET, REGION, key(number)))

        return measure

    with TemporaryDirectory() as folder:
        tracing = Tracing("client", "", 0.0, Path(folder), "bench")
        sampled_out = {"trace_directory": folder, "trace_sample_ratio": "0"}
        async with (
            extra_gateway(stack, "bench-sampled-out", **sampled_out) as ours,
            extra_gateway(stack, "bench-untraced") as bare,
            regiongate.connect(ours, direct=False, tracing=tracing) as traced,
            regiongate.connect(bare, direct=False) as untraced,
        ):
            measured = await alternate(rounds, reader(traced), reader(untraced))
        tracing.shutdown()
    return summarise("trace_off", "calls/s", "no tracing", Reach(0.95, at_least=True), measured)
