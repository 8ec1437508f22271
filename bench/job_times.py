"""Figures about how soon jobs do their work: after a write, and after the death of the runner that was to do it."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import regiongate
from bench.harness import Figure, Reach, Round, summarise
from bench.job_followers import FEW, PORT, bench_follow
from bench.job_handlers import DATASET
from bench.job_stack import IDC, SHARDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from bench.job_stack import JobStack
    from gateway.client import Client

SECONDS = 60.0
LAGS = 100
LEASE_SECONDS = 3.0
PAUSE_SECONDS = 0.02
"""Between two writes."""


class Sightings(asyncio.DatagramProtocol):
    """What the runners tell, as it comes."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        """Key -> when it was seen, by this process's clock."""
        self.last: dict[int, int] = {}
        """Shard -> process that has seen a row of it last."""
        self.changed = asyncio.Event()

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002 (as asyncio calls it)
        """A row was seen."""
        process, shard, key = data.decode().split()
        self.seen[key] = time.perf_counter()
        self.last[int(shard)] = int(process)
        self.changed.set()

    async def wait_key(self, key: str) -> float:
        """When a row was seen."""
        while key not in self.seen:
            await self._wait()
        return self.seen[key]

    async def wait_processes(self, wanted: set[int], shards: set[int]) -> None:
        """Waits until all these processes, and no others, have seen the last row of each of the shards."""
        while {self.last.get(shard) for shard in shards} != wanted:
            await self._wait()

    async def _wait(self) -> None:
        self.changed.clear()
        await self.changed.wait()


@asynccontextmanager
async def listening() -> AsyncGenerator[tuple[Sightings, dict[str, str]]]:
    """Sightings, and what a runner's environment must have to tell of them."""
    loop = asyncio.get_running_loop()
    transport, sightings = await loop.create_datagram_endpoint(Sightings, local_addr=("127.0.0.1", 0))
    try:
        port: int = transport.get_extra_info("sockname")[1]
        yield sightings, {PORT: str(port), "REGIONGATE_JOBS": bench_follow.name}
    finally:
        transport.close()


async def job_lag(stack: JobStack, rounds: int) -> list[Figure]:
    """From the call of a put until a long-running job's handler sees the row; against the put alone."""
    measured: list[Round] = []
    async with (
        listening() as (sightings, environment),
        stack.running("bench.job_followers", environment),
        regiongate.connect(stack.stack.idcs[IDC].gateway) as client,
        asyncio.timeout(SECONDS * 2),
    ):
        await client.put(DATASET, FEW, "first", {})
        await sightings.wait_key("first")
        for number in range(rounds):
            lags: list[float] = []
            puts: list[float] = []
            for index in range(LAGS):
                key = f"lag-{number}-{index}"
                start = time.perf_counter()
                await client.put(DATASET, FEW, key, {"population": index})
                puts.append(time.perf_counter() - start)
                lags.append(await sightings.wait_key(key) - start)
                await asyncio.sleep(PAUSE_SECONDS)
            measured.append(Round(statistics.median(lags) * 1e3, statistics.median(puts) * 1e3))
    return [summarise("job_lag", "ms", "the put alone", Reach(50, at_least=False, on_value=True), measured)]


async def takeover(stack: JobStack, rounds: int) -> list[Figure]:
    """From SIGKILL of a runner until another one handles rows of each of its shards; against the lease alone."""
    measured: list[Round] = []
    async with AsyncExitStack() as runners:
        sightings, environment = await runners.enter_async_context(listening())
        client = await runners.enter_async_context(regiongate.connect(stack.stack.idcs[IDC].gateway))
        writing = asyncio.create_task(_write(client))
        try:
            kept = await runners.enter_async_context(stack.running("bench.job_followers", environment))
            for _ in range(rounds):
                async with asyncio.timeout(SECONDS):
                    measured.append(Round(await _one_takeover(stack, sightings, environment, kept.pid), LEASE_SECONDS))
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing
    return [summarise("takeover", "s", "lease of 3 s", Reach(4, at_least=False, on_value=True), measured)]


async def _one_takeover(stack: JobStack, sightings: Sightings, environment: dict[str, str], kept: int) -> float:
    """Seconds from the death of a second runner until the first has its shards."""
    async with stack.running("bench.job_followers", environment) as victim:
        await sightings.wait_processes({kept, victim.pid}, set(range(SHARDS)))
        # Until its share is all that it will be: the first runner has let go of the rest.
        await asyncio.sleep(LEASE_SECONDS / 2)
        orphans = {shard for shard, process in sightings.last.items() if process == victim.pid}
        start = time.perf_counter()
        victim.kill()
        await sightings.wait_processes({kept}, orphans)
        return time.perf_counter() - start


async def _write(client: Client) -> None:
    """Keeps rows of all shards changing."""
    for number in itertools.count():
        with suppress(regiongate.RegiongateError):
            await client.put(DATASET, FEW, f"moving-{number % 64}", {"population": number})
        await asyncio.sleep(PAUSE_SECONDS / 4)
