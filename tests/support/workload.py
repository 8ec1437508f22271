"""Clients that read and write while something breaks, and remember what they saw.

Every write carries a number that is never used twice, so a read names the write that it saw. A write that fails in a
way that leaves its fate open is recorded as lost: it may have happened at any time since, or never.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.errors import AccessDenied, InvalidInput, NotOwnedHere, RegiongateError, RowNotFound
from tests.support.linearizability import LOST, Event, Recorder, violations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.client import Client
    from tests.support.law_stack import Stored

REFUSALS = (AccessDenied, InvalidInput, NotOwnedHere)
"""Errors after which nothing was written, for certain."""


@dataclass(slots=True)
class Workload:
    """Reads, puts and deletes on a few keys through several clients at once.

    Args:
        clients: Each worker uses one, in turn.
        keys: (RegionCode, key) pairs; few, so that operations meet.
        dataset: It has an int64 column `column`.
    """

    clients: Sequence[Client]
    keys: Sequence[tuple[str, str]]
    dataset: str = "customers"
    column: str = "spend"
    workers: int = 8
    timeout: float = 5.0
    seed: int = 7
    recorder: Recorder = field(default_factory=Recorder)
    errors: Counter[str] = field(default_factory=Counter)
    acknowledged: dict[int, int] = field(default_factory=dict)
    """Number -> version, of each put that was acknowledged."""
    deletes: int = 0
    reads: int = 0
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; each worker ends after its call in flight."""
        async with asyncio.TaskGroup() as group:
            for worker in range(self.workers):
                group.create_task(self._work(worker, stop))

    async def _work(self, worker: int, stop: asyncio.Event) -> None:
        dice = random.Random(f"{self.seed}/{worker}")
        client = self.clients[worker % len(self.clients)]
        while not stop.is_set():
            region_code, key = dice.choice(self.keys)
            draw = dice.random()
            if draw < 0.5:
                await self.read(client, region_code, key)
            else:
                await self.write(client, region_code, key, delete=draw > 0.95)

    async def read(self, client: Client, region_code: str, key: str) -> None:
        """One read; one that fails says nothing about the row and is only counted."""
        start = time.monotonic()
        try:
            row = await client.get(self.dataset, region_code, key, timeout=self.timeout)
            value = row.values[self.column]
        except RowNotFound:
            value = None
        except RegiongateError as error:
            self.errors[error.reason] += 1
            return
        self.reads += 1
        self._record(region_code, key, Event(False, value, start, time.monotonic()))

    async def write(self, client: Client, region_code: str, key: str, *, delete: bool = False) -> None:
        """One put or delete."""
        value = None if delete else next(self._numbers)
        start = time.monotonic()
        try:
            if value is None:
                receipt = await client.delete(self.dataset, region_code, key, timeout=self.timeout)
            else:
                receipt = await client.put(self.dataset, region_code, key, {self.column: value}, timeout=self.timeout)
        except REFUSALS as error:
            self.errors[error.reason] += 1
            return
        except RegiongateError as error:
            self.errors[error.reason] += 1
            self._record(region_code, key, Event(True, value, start, LOST))
            return
        if value is None:
            self.deletes += 1
        else:
            self.acknowledged[value] = receipt.version
        self._record(region_code, key, Event(True, value, start, time.monotonic()))

    def _record(self, region_code: str, key: str, event: Event) -> None:
        self.recorder.add(f"{region_code}/{key}", event)

    @property
    def done(self) -> int:
        """Operations that have succeeded so far."""
        return len(self.acknowledged) + self.deletes + self.reads

    async def progress(self, operations: int, seconds: float = 45) -> None:
        """Waits until so many more operations have succeeded."""
        goal, deadline = self.done + operations, time.monotonic() + seconds
        while self.done < goal:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{goal - self.done} of {operations} operations are missing; errors: {self.errors}"
                )
            await asyncio.sleep(0.01)

    async def settle(self) -> None:
        """Reads every key through every client once more: what was acknowledged must be seen by all (law L3)."""
        for client in self.clients:
            for region_code, key in self.keys:
                await self.read(client, region_code, key)

    def violations(self) -> list[str]:
        """Keys whose history no single order explains."""
        return violations(self.recorder.histories)


@contextlib.asynccontextmanager
async def under_load(workload: Workload):
    """Runs a workload around a block, then lets it end and settle."""
    stop = asyncio.Event()
    task = asyncio.create_task(workload.run(stop))
    try:
        yield workload
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)
    await workload.settle()


def check_stored(workload: Workload, rows: Iterable[Stored]) -> None:
    """What the databases hold is what the history says: each key's last write, done once, and its number once.

    A write that was done twice would have left its row at a later version than the one that was acknowledged.
    """
    stored = {(row.region_code, row.key): row for row in rows}
    for region_code, key in workload.keys:
        history = workload.recorder.histories[f"{region_code}/{key}"]
        written = {event.value for event in history if event.is_write}
        if not written:
            continue
        row = stored[region_code, key]
        last_seen = history[-1]
        assert not last_seen.is_write, "the workload has not settled"
        assert (None if row.deleted else row.spend) == last_seen.value, f"{region_code}: not what was read last"
        assert last_seen.value in written
        if last_seen.value in workload.acknowledged:
            assert row.seq == workload.acknowledged[last_seen.value], f"{region_code}: written more than once"
    versions = Counter(
        (event_key, workload.acknowledged[event.value])
        for event_key, history in workload.recorder.histories.items()
        for event in history
        if event.is_write and event.value in workload.acknowledged
    )
    assert max(versions.values(), default=1) == 1, "two writes of a key have one version"
