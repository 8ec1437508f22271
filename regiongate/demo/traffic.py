"""Clients that go on reading and writing while the law changes, and remember what they have been promised.

Each writer has keys of its own and counts upwards in them. So every read can be judged: what had been acknowledged
before it began must be in it (laws L3 and L4), through whichever gateway it goes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import regiongate
from policy.errors import RegiongateError
from regiongate.demo.load import write_places
from regiongate.demo.places import DATASET

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from gateway.client import Client
    from regiongate.demo.places import Place

KEYS_OF_A_WRITER = 60
PAUSE_SECONDS = 0.02
"""Between two calls of one caller: people watch this on a laptop."""


@dataclass(frozen=True, slots=True)
class Callers:
    """Some callers of one RegionCode that enter in one IDC."""

    idc: str
    region_code: str
    writers: int
    readers: int


CALLERS = (
    Callers("fra", "GB", 6, 4),
    Callers("ams", "GB", 4, 4),
    Callers("fra", "DE", 2, 2),
    Callers("sin", "JP", 1, 1),
    Callers("sha", "CN", 1, 1),
)


@dataclass(slots=True)
class Seen:
    """What the callers have seen so far."""

    reads: Counter[str] = field(default_factory=Counter)
    """By RegionCode."""
    writes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """By reason and RegionCode."""
    stale: int = 0
    """Reads without a write that had been acknowledged before they began."""
    longest_write: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """RegionCode -> seconds."""

    @property
    def calls(self) -> int:
        """All that were answered well."""
        return self.reads.total() + self.writes.total()


class Traffic:
    """The callers; `async with running(...)`."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places: dict[str, list[Place]] = defaultdict(list)
        for place in places:
            self._places[place.region_code].append(place)
        self._taken: Counter[str] = Counter()
        self._acknowledged: dict[tuple[str, str], int] = {}
        self._written: dict[str, dict[str, Place]] = defaultdict(dict)
        """RegionCode -> key -> place, as the data file has it."""
        self._stop = asyncio.Event()
        self.seen = Seen()

    @asynccontextmanager
    async def running(self, entries: Mapping[str, str], callers: Sequence[Callers] = CALLERS) -> AsyncGenerator[Seen]:
        """Calls until the block ends; each caller then ends the call that it is in."""
        async with AsyncExitStack() as connections:
            clients = {
                idc: await connections.enter_async_context(regiongate.connect(entries[idc]))
                for idc in dict.fromkeys(them.idc for them in callers)
            }
            async with asyncio.TaskGroup() as group:
                for them in callers:
                    for _ in range(them.writers):
                        group.create_task(self._write(clients[them.idc], self._own_places(them.region_code)))
                    for _ in range(them.readers):
                        group.create_task(self._read(clients[them.idc], them.region_code))
                try:
                    yield self.seen
                finally:
                    self._stop.set()

    async def lost(self, entries: Mapping[str, str]) -> int:
        """How many acknowledged writes the gateways no longer find, each asked in a lawful IDC."""
        idcs = {them.region_code: them.idc for them in CALLERS}
        lost = 0
        for region_code, idc in idcs.items():
            wanted = {key: number for (code, key), number in self._acknowledged.items() if code == region_code}
            async with regiongate.connect(entries[idc]) as client:
                rows = await client.batch_get(DATASET, [(region_code, key) for key in wanted], timeout=30)
            for row, number in zip(rows, wanted.values(), strict=True):
                lost += isinstance(row, Exception) or row.values["population"] < number
        return lost

    async def put_back(self, entries: Mapping[str, str]) -> int:
        """Writes what the data file says of each place that was written over; returns how many these were.

        Raises:
            RegiongateError: What the first write that failed failed with.
        """
        idcs = {them.region_code: them.idc for them in CALLERS}
        for region_code, places in self._written.items():
            async with regiongate.connect(entries[idcs[region_code]]) as client:
                await write_places(client, list(places.values()), lambda _: None)
        return sum(map(len, self._written.values()))

    def _own_places(self, region_code: str) -> list[Place]:
        start = self._taken[region_code]
        self._taken[region_code] += KEYS_OF_A_WRITER
        return self._places[region_code][start : start + KEYS_OF_A_WRITER]

    async def _write(self, client: Client, places: Sequence[Place]) -> None:
        for number in count(1):
            if self._stop.is_set():
                return
            place = places[number % len(places)]
            self._written[place.region_code][place.key] = place
            began = time.perf_counter()
            try:
                await client.put(DATASET, place.region_code, place.key, {**place.values, "population": number})
            except RegiongateError as error:
                self._note(error, place.region_code)
            else:
                self._acknowledged[place.region_code, place.key] = number
                self.seen.writes[place.region_code] += 1
            longest = self.seen.longest_write
            longest[place.region_code] = max(longest[place.region_code], time.perf_counter() - began)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _read(self, client: Client, region_code: str) -> None:
        while not self._stop.is_set():
            place = random.choice(self._places[region_code][: self._taken[region_code]])  # noqa: S311 (no secret)
            promised = self._acknowledged.get((region_code, place.key), 0)
            try:
                row = await client.get(DATASET, region_code, place.key)
            except RegiongateError as error:
                self._note(error, region_code)
            else:
                self.seen.reads[region_code] += 1
                self.seen.stale += promised > row.values["population"]
            await asyncio.sleep(PAUSE_SECONDS)

    def _note(self, error: RegiongateError, region_code: str) -> None:
        self.seen.errors[f"{error.reason} for {region_code}"] += 1
