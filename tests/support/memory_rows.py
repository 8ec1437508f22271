"""Rows in memory behind the interface of the row store, for tests of what stands on it.

It passes the same contract suite as PostgreSQL (tests/contract/test_rows.py). A test may pause its statements, and look
at what has begun.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rowstore.model import FenceMiss, FenceMode, Missing, StoredRow, VersionMismatch, Written

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policy.errors import RegiongateError
    from policy.model import Dataset
    from policy.table import RoutingTable
    from rowstore.model import ReadKey, ReadOutcome, RowWrite, WriteOutcome


class _Fence:
    def __init__(self, epoch: int, mode: FenceMode) -> None:
        self.epoch = epoch
        self.mode = mode
        self.last_seq = 0


class MemoryRows:
    """One IDC's database."""

    def __init__(self) -> None:
        self.fences: dict[tuple[str, int], _Fence] = {}
        self.statements: list[tuple[str, int]] = []
        """What has begun: read or write, and how many rows."""
        self.failure: RegiongateError | None = None
        self._rows: dict[tuple[str, str, str | int], StoredRow | int] = {}
        self._requests: dict[tuple[str, int, str], list[Written]] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._begun = asyncio.Condition()

    # ---- for tests --------------------------------------------------------------------------------------------------

    def set_fence(self, region_code: str, shard: int, epoch: int = 1, mode: FenceMode = FenceMode.SERVING) -> None:
        """Opens, moves or closes a shard."""
        fence = self.fences.setdefault((region_code, shard), _Fence(epoch, mode))
        fence.epoch, fence.mode = epoch, mode

    def set_fences(self, table: RoutingTable, idc: str, epoch: int = 1, mode: FenceMode = FenceMode.SERVING) -> None:
        """Opens, moves or closes every shard that the table gives to the IDC."""
        for route in table.all_routes():
            if route.idc == idc:
                self.set_fence(route.region_code, route.shard, epoch, mode)

    def open_all(self, table: RoutingTable, idc: str) -> None:
        """Opens every shard that the table gives to the IDC."""
        for route in table.all_routes():
            if route.idc == idc:
                self.set_fence(route.region_code, route.shard, route.epoch)

    def hand_over(self, target: MemoryRows, region_code: str, shard: int, keys: Iterable[str | int]) -> None:
        """Moves a shard's rows, sequence and remembered requests; epochs and modes of the fences are the test's."""
        wanted = set(keys)
        for place in [place for place in self._rows if place[1] == region_code and place[2] in wanted]:
            target._rows[place] = self._rows.pop(place)
        for request in [request for request in self._requests if request[:2] == (region_code, shard)]:
            target._requests[request] = self._requests.pop(request)
        target.fences[region_code, shard].last_seq = self.fences[region_code, shard].last_seq

    def pause(self) -> None:
        """Statements begin, and do not take effect until `resume`."""
        self._open.clear()

    def resume(self) -> None:
        """Lets statements go on."""
        self._open.set()

    async def wait_begun(self, number: int) -> None:
        """Waits until so many statements have begun."""
        async with self._begun:
            await self._begun.wait_for(lambda: len(self.statements) >= number)

    # ---- the row store's interface ----------------------------------------------------------------------------------

    async def read(self, dataset: Dataset, keys: Sequence[ReadKey]) -> list[ReadOutcome]:
        await self._begin("read", len(keys))
        return [self._read(dataset, key) for key in keys]

    async def write(self, dataset: Dataset, writes: Sequence[RowWrite]) -> list[WriteOutcome]:
        assert len({(write.region_code, write.key) for write in writes}) == len(writes), "no key twice"
        await self._begin("write", len(writes))
        groups: dict[tuple[str, int, str], list[int]] = defaultdict(list)
        for index, write in enumerate(writes):
            groups[write.region_code, write.shard, write.request_id or f"\0{index}"].append(index)
        outcomes: dict[int, WriteOutcome] = {}
        for (region_code, shard, request_id), indices in groups.items():
            remembered = self._requests.get((region_code, shard, request_id), [])
            results: list[WriteOutcome] = []
            for rank, index in enumerate(indices):
                fence = self._miss(writes[index], {FenceMode.SERVING})
                if fence is not None:
                    results.append(fence)
                elif rank < len(remembered):
                    first = remembered[rank]
                    results.append(Written(first.version, first.update_time, is_replay=True))
                else:
                    results.append(self._write(dataset, writes[index]))
            outcomes.update(zip(indices, results, strict=True))
            written = [result for result in results if isinstance(result, Written)]
            if len(written) == len(results) and not remembered and not request_id.startswith("\0"):
                self._requests[region_code, shard, request_id] = written
        return [outcomes[index] for index in range(len(writes))]

    async def _begin(self, kind: str, rows: int) -> None:
        self.statements.append((kind, rows))
        async with self._begun:
            self._begun.notify_all()
        await self._open.wait()
        if self.failure is not None:
            raise self.failure

    def _miss(self, item: ReadKey | RowWrite, modes: set[FenceMode]) -> FenceMiss | None:
        fence = self.fences.get((item.region_code, item.shard))
        if fence is None:
            return FenceMiss(None, 0)
        if fence.epoch != item.epoch or fence.mode not in modes:
            return FenceMiss(fence.mode, fence.epoch)
        return None

    def _read(self, dataset: Dataset, key: ReadKey) -> ReadOutcome:
        found = self._rows.get((dataset.name, key.region_code, key.key))
        miss = self._miss(key, {FenceMode.SERVING, FenceMode.DRAINING})
        return miss or (found if isinstance(found, StoredRow) else Missing())

    def _write(self, dataset: Dataset, write: RowWrite) -> WriteOutcome:
        place = (dataset.name, write.region_code, write.key)
        before = self._rows.get(place)
        current = before.version if isinstance(before, StoredRow) else 0
        if write.if_version is not None and write.if_version != current:
            return VersionMismatch(current)
        fence = self.fences[write.region_code, write.shard]
        fence.last_seq += 1
        now = datetime.now(UTC)
        if write.values is None:
            self._rows[place] = fence.last_seq
        else:
            values = {name: write.values.get(name) for name in dataset.columns}
            self._rows[place] = StoredRow(write.region_code, write.key, fence.last_seq, now, values)
        return Written(fence.last_seq, now)
