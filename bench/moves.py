"""Figures about moving shards: how fast rows go, what writers wait, what clients see, what a rollout costs.

All on a stack of two IDCs (`bench.move_stack`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import asyncpg

import regiongate
from bench.harness import Figure, Reach, Round, drive, summarise
from bench.move_stack import (
    DATASET,
    HUGE,
    IDCS,
    LARGE,
    ROLLED,
    ROLLED_ROWS,
    ROWS,
    SMALL,
    STILL,
    TABLE,
    document,
    key,
)
from policy.errors import RegiongateError
from regiongate.demo.rollout import policy_stub
from regiongate.v1 import policy_service_pb2 as pb
from runtime.embedded.postgres_binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from bench.move_stack import MoveStack
    from gateway.client import Client

COPY_ROUNDS = 3
WRITERS = 32
PAUSE_SECONDS = 0.03
"""Of a caller between two calls: what a move takes is asked, not how full two cores can be."""
STALL_MOVES = 20
ERROR_MOVES = 50
QUIET_SECONDS = 0.5
SETTLE_SECONDS = 30.0
CALLERS = 32
APPLY_SECONDS = 30.0


# ---- move_copy ------------------------------------------------------------------------------------------------------


async def move_copy(stack: MoveStack, _rounds: int) -> list[Figure]:
    """A shard of half a million rows, from the start of copying until the target serves, against psql into psql."""
    await stack.fill(HUGE, ROWS[HUGE])
    measured: list[Round] = []
    for _ in range(COPY_ROUNDS):
        await stack.tidy()
        source, target = stack.home(HUGE), stack.other(HUGE)
        baseline = ROWS[HUGE] / await _pipe(stack.database(source), stack.database(target))
        moved = await stack.move(HUGE)
        measured.append(Round(ROWS[HUGE] / moved.seconds, baseline))
    reach = Reach(0.5, at_least=True)
    return [summarise("move_copy", "rows/s", "psql COPY | psql COPY", reach, measured)]


async def _pipe(source: str, target: str) -> float:
    """Seconds that psql takes to copy the shard's rows into a table of the same columns and indexes."""
    connection = await asyncpg.connect(target)
    try:
        await connection.execute(
            f"DROP TABLE IF EXISTS bench_copy; CREATE TABLE bench_copy (LIKE {TABLE} INCLUDING ALL)"
        )
        psql = find_binaries() / "psql"
        rows = f"COPY (SELECT * FROM {TABLE} WHERE region_code = '{HUGE}') TO STDOUT"
        command = f"'{psql}' '{source}' -qc \"{rows}\" | '{psql}' '{target}' -qc 'COPY bench_copy FROM STDIN'"
        start = time.perf_counter()
        process = await asyncio.create_subprocess_shell(command)
        assert await process.wait() == 0
        seconds = time.perf_counter() - start
        assert await connection.fetchval("SELECT count(*) FROM bench_copy") == ROWS[HUGE]
        await connection.execute("DROP TABLE bench_copy")
    finally:
        await connection.close()
    return seconds


# ---- move_stall -----------------------------------------------------------------------------------------------------


async def move_stall(stack: MoveStack, _rounds: int) -> list[Figure]:
    """The longest wait of a write while its shard moves, of a small shard and of a large one, against no move."""
    reach = Reach(100, at_least=False, on_value=True)
    small = await _stalls(stack, SMALL)
    large = await _stalls(stack, LARGE)
    growth = [Round(of_large.ours, of_small.ours) for of_large, of_small in zip(large, small, strict=True)]
    return [
        summarise("move_stall_1k", "ms", "longest write at rest", reach, small),
        summarise("move_stall_200k", "ms", "longest write at rest", reach, large),
        summarise("move_stall_growth", "ms", "of the small shard", Reach(2, at_least=False), growth),
    ]


async def _stalls(stack: MoveStack, region_code: str) -> list[Round]:
    await stack.fill(region_code, ROWS[region_code])
    measured: list[Round] = []
    async with _load(stack, region_code, writers=WRITERS) as load:
        for _ in range(STALL_MOVES):
            await stack.tidy()
            load.start()
            await asyncio.sleep(QUIET_SECONDS)
            quiet = load.longest_ms
            load.start()
            await stack.move(region_code)
            await load.catch_up()
            measured.append(Round(load.longest_ms, quiet))
    assert not load.errors, load.errors
    return measured


@dataclass(slots=True)
class _Load:
    """Callers that go on until they are stopped."""

    errors: Counter[str] = field(default_factory=Counter[str])
    calls: int = 0
    longest_ms: float = 0.0
    """Of the writes that have ended since `start`."""
    is_stopped: bool = False
    written: Counter[int] = field(default_factory=Counter[int])
    """Writes that have ended, by writer."""

    async def catch_up(self) -> None:
        """Waits until what every writer is waiting for now has ended."""
        before = dict(self.written)
        async with asyncio.timeout(SETTLE_SECONDS):
            while any(self.written[writer] == number for writer, number in before.items()):  # noqa: ASYNC110 (counters)
                await asyncio.sleep(PAUSE_SECONDS)

    def start(self) -> None:
        """Forgets the longest write."""
        self.longest_ms = 0.0

    async def write(self, client: Client, region_code: str, writer: int) -> None:
        """Writes row after row of those that are there."""
        for number in count(1):
            row = (number * WRITERS + writer) % ROWS[region_code] + 1
            start = time.perf_counter()
            await self._call(client.put(DATASET, region_code, key(row), {"name": "written", "spend": number}))
            self.written[writer] += 1
            self.longest_ms = max(self.longest_ms, (time.perf_counter() - start) * 1e3)
            if self.is_stopped:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def read(self, client: Client, region_code: str, reader: int) -> None:
        """Reads row after row."""
        for number in count(1):
            await self._call(client.get(DATASET, region_code, key((number * WRITERS + reader) % ROWS[region_code] + 1)))
            if self.is_stopped:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _call(self, call: Awaitable[object]) -> None:
        try:
            await call
            self.calls += 1
        except RegiongateError as error:
            self.errors[error.reason] += 1


@asynccontextmanager
async def _load(stack: MoveStack, region_code: str, *, writers: int, readers: int = 0) -> AsyncGenerator[_Load]:
    """Writers and readers of the RegionCode, by the gateways of both IDCs in turn; half of them go by no other way."""
    load = _Load()
    async with AsyncExitStack() as connections:
        clients = [
            await connections.enter_async_context(regiongate.connect(stack.stack.idcs[idc].gateway, direct=direct))
            for direct in ((True, False) if readers else (True,))
            for idc in IDCS
        ]
        async with asyncio.TaskGroup() as group:
            for number in range(writers):
                group.create_task(load.write(clients[number % len(clients)], region_code, number))
            for number in range(readers):
                group.create_task(load.read(clients[number % len(clients)], region_code, number))
            try:
                yield load
            finally:
                load.is_stopped = True


# ---- move_errors ----------------------------------------------------------------------------------------------------


async def move_errors(stack: MoveStack, _rounds: int) -> list[Figure]:
    """Errors that clients see while their shard moves to and fro, and how many calls they have made."""
    await stack.fill(SMALL, ROWS[SMALL])
    async with _load(stack, SMALL, writers=WRITERS, readers=WRITERS) as load:
        for _ in range(ERROR_MOVES):
            await stack.move(SMALL)
    measured = [Round(load.errors.total(), load.calls)]
    return [summarise("move_errors", "errors", "calls", Reach(0, at_least=False, on_value=True), measured)]


# ---- rollout_throughput ---------------------------------------------------------------------------------------------


async def rollout_throughput(stack: MoveStack, rounds: int) -> list[Figure]:
    """Gets and puts of rows that stay, while a policy moves eight shards of 20,000 rows, against the same without."""
    for region_code in (*ROLLED, STILL):
        await stack.fill(region_code, ROLLED_ROWS if region_code in ROLLED else ROWS[STILL])
    measured: list[Round] = []
    async with regiongate.connect(stack.stack.idcs["fra"].gateway) as client:

        def call(number: int) -> Awaitable[object]:
            row = key(number * 7919 % ROWS[STILL] + 1)
            if number % 4:
                return client.get(DATASET, STILL, row)
            return client.put(DATASET, STILL, row, {"name": "written", "spend": number})

        for number in range(rounds):
            await stack.tidy()
            quiet = await _rate_during(call, asyncio.sleep(2.0))
            rolled = await _rate_during(call, _roll(stack, IDCS[(number + 1) % 2]))
            measured.append(Round(rolled, quiet))
    return [summarise("rollout_throughput", "calls/s", "no rollout", Reach(0.6, at_least=True), measured)]


async def _roll(stack: MoveStack, idc: str) -> None:
    async with policy_stub(stack.stack.idcs["fra"].gateway) as stub:
        request = pb.ApplyPolicyRequest(document=document(idc), author="bench")
        answer = await stub.ApplyPolicy(request, timeout=APPLY_SECONDS)
    assert (await stack.wait_ended(answer.rollout)).state == "done"


async def _rate_during(call: Callable[[int], Awaitable[object]], work: Awaitable[None]) -> float:
    """Calls per second from the beginning of the work to its end."""
    working = asyncio.ensure_future(work)
    calls = seconds = 0.0
    offset = 0
    while not working.done():
        done, took = await drive(CALLERS, 0.25, lambda number, offset=offset: call(number + offset))
        calls, seconds, offset = calls + done, seconds + took, offset + done
    await working
    return calls / seconds
