"""The statements of this IDC's database: a coalescer for the reads and one for the writes of each dataset.

A statement that serves sampled calls is one span, a child of the first of them and linked to the others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from gateway import metrics
from gateway.coalescer import Coalescer, write_clashes
from policy.errors import RegiongateError
from rowstore.model import ReadKey, ReadOutcome, RowWrite, WriteOutcome
from runtime.telemetry.tracing import DATASET, ROWS, SpanKind, set_failed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.limits import EngineSettings
    from policy.model import Dataset
    from runtime.telemetry.tracing import Span, Tracing

Reads = Coalescer[ReadKey, ReadOutcome]
Writes = Coalescer[RowWrite, WriteOutcome]

READ_PACE: Final = 0.002
"""Seconds between two read statements on a dataset while callers come together. Writes are paced by their commits."""

_SYSTEM: Final = {"db.system.name": "postgresql"}


class Rows(Protocol):
    """What the engine needs of `rowstore.store.RowStore`."""

    async def read(self, dataset: Dataset, keys: Sequence[ReadKey]) -> list[ReadOutcome]:
        """Reads rows in one statement; outcomes in the order of the keys."""
        ...

    async def write(self, dataset: Dataset, writes: Sequence[RowWrite]) -> list[WriteOutcome]:
        """Writes rows, no key twice; outcomes in the order of the writes."""
        ...


class Statements:
    """Every dataset's coalescers."""

    def __init__(
        self, rows: Rows, tracing: Tracing, settings: EngineSettings, wrote: Callable[[], None] | None = None
    ) -> None:
        """`wrote` is called after each write statement that the database has answered; it must not take time."""
        self._rows = rows
        self._wrote = wrote
        self._tracing = tracing
        self._settings = settings
        # By name, which the policy bounds. A dataset that a new policy has changed gets new ones: a statement reads the
        # columns of one revision, so that none slips past a decision that did not know it.
        self._reads: dict[str, tuple[Dataset, Reads]] = {}
        self._writes: dict[str, tuple[Dataset, Writes]] = {}

    def reads(self, dataset: Dataset) -> Reads:
        """The coalescer of the dataset's reads."""
        entry = self._reads.get(dataset.name)
        if entry is None or (entry[0] is not dataset and entry[0] != dataset):
            entry = self._reads[dataset.name] = (dataset, self._make_reads(dataset))
        return entry[1]

    def writes(self, dataset: Dataset) -> Writes:
        """The coalescer of the dataset's writes."""
        entry = self._writes.get(dataset.name)
        if entry is None or (entry[0] is not dataset and entry[0] != dataset):
            entry = self._writes[dataset.name] = (dataset, self._make_writes(dataset))
        return entry[1]

    async def drain(self) -> None:
        """Waits until nothing is in flight."""
        await asyncio.gather(*(reads.drain() for _, reads in self._reads.values()))
        await asyncio.gather(*(writes.drain() for _, writes in self._writes.values()))

    def _make_reads(self, dataset: Dataset) -> Reads:
        async def perform(keys: Sequence[ReadKey], traceparents: Sequence[str]) -> list[ReadOutcome]:
            metrics.READ_ROWS.observe(len(keys))
            span = self._start("db.read", dataset, len(keys), traceparents) if traceparents else None
            try:
                return await self._rows.read(dataset, keys)
            except RegiongateError as error:
                set_failed(span, error.reason)
                raise
            finally:
                if span is not None:
                    span.end()

        settings = self._settings
        return Coalescer(perform, in_flight=settings.reads_in_flight, max_rows=settings.max_batch_rows, pace=READ_PACE)

    def _make_writes(self, dataset: Dataset) -> Writes:
        async def perform(writes: Sequence[RowWrite], traceparents: Sequence[str]) -> list[WriteOutcome]:
            metrics.WRITE_ROWS.observe(len(writes))
            span = self._start("db.write", dataset, len(writes), traceparents) if traceparents else None
            try:
                outcomes = await self._rows.write(dataset, writes)
            except RegiongateError as error:
                set_failed(span, error.reason)
                raise
            finally:
                if span is not None:
                    span.end()
            if self._wrote is not None:
                self._wrote()
            return outcomes

        settings = self._settings
        return Coalescer(
            perform, in_flight=settings.writes_in_flight, max_rows=settings.max_batch_rows, clashes=write_clashes
        )

    def _start(self, name: str, dataset: Dataset, rows: int, traceparents: Sequence[str]) -> Span | None:
        attributes = {**_SYSTEM, DATASET: dataset.name, ROWS: rows}
        return self._tracing.start(
            name, kind=SpanKind.CLIENT, traceparent=traceparents[0], attributes=attributes, links=traceparents[1:]
        )
