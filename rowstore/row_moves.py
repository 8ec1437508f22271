"""One row on its way from one RegionCode to another: what the databases of its old and its new home do.

    old home: prepare      the departure is written down; the row is as it was
    new home: arrive       the arrival keeps the values, a reservation the place; nobody sees the row here yet
    old home: depart       the row is gone here, and the departure says so, in one transaction: this is the move
    new home: settle       the row is live here; the arrival is over
    old home: forget       the departure is over

Between `arrive` and `settle` a reader of the new name waits, so at no instant are both rows seen, or neither. What is
broken off before `depart` is undone (`void`, `cancel`), after it done (`settle`): whoever finds a departure reads from
its state which of the two, so any number of gateways may go on with it, and again. A departure is deleted only after
one of these: an arrival without a departure is cancelled, because the row has never left, or was never let in.

Each step passes the fence of its shard (law L2), so departures and arrivals stand still while their shard moves, and
travel with it (`rowstore.tables.SHARD_TABLES`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from policy.errors import DatabaseUnavailable
from policy.model import KeyType
from rowstore import row_move_statements as statements
from rowstore.compiling import value_names
from rowstore.model import FenceMiss, FenceMode, ReadKey, StoredRow, Written
from rowstore.tables import dataset_table

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import timedelta

    from policy.model import Dataset
    from rowstore.database import Database

MAX_ROUNDS: Final = 4
"""Statements for one step before the store gives up on it."""

_WRITABLE: Final = (FenceMode.SERVING,)
_READABLE: Final = (FenceMode.SERVING, FenceMode.DRAINING)


class DepartureState(StrEnum):
    """Where a departure stands."""

    PREPARED = "prepared"
    DEPARTED = "departed"
    VOID = "void"


class MovePlan(NamedTuple):
    """What is written down of a move before it begins, so that anybody can end it."""

    move_id: str
    to_region_code: str
    request_id: str
    purpose: str
    asking_idcs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Departure:
    """A row that is leaving."""

    place: ReadKey
    dataset: str
    plan: MovePlan
    version: int
    state: DepartureState


@dataclass(frozen=True, slots=True)
class OldHome:
    """What there is of a row where it may leave from, in one snapshot."""

    live_version: int
    """0 when there is no live row."""
    departure: Departure | None


@dataclass(frozen=True, slots=True)
class NewHome:
    """What there is of a row where it may arrive, in one snapshot."""

    live_version: int
    """0 when there is no live row."""
    arriving: tuple[str, str] | None
    """Move and request of the arrival."""
    first_result: Written | None
    """Of the request that was asked about."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A row that is expected from elsewhere."""

    place: ReadKey
    dataset: str
    move_id: str
    from_region_code: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """The row's place is kept."""


@dataclass(frozen=True, slots=True)
class Occupied:
    """A live row of the key is there already."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """Another move to the same place is not over yet."""


class ArrivingRow(NamedTuple):
    """A row as it comes in."""

    move_id: str
    from_region_code: str
    request_id: str
    values: Mapping[str, object]


Arrival = Arrived | Occupied | Awaited | Written | FenceMiss


class RowMoves:
    """The steps on one IDC's database. Each raises `DatabaseUnavailable`, and then may or may not have been done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- the old home -----------------------------------------------------------------------------------------------

    async def prepare(
        self, dataset: Dataset, place: ReadKey, if_version: int | None, plan: MovePlan
    ) -> StoredRow | OldHome | FenceMiss:
        """Writes the departure down; returns the row that is to leave, or what stands in the way."""
        table = dataset_table(dataset)
        for _ in range(MAX_ROUNDS):
            records = await self._database.fetch(
                statements.prepare(table), *place, dataset.name, if_version, *plan[:-1], list(plan.asking_idcs)
            )
            if records:
                move_id, seq, update_time, *values = records[0]
                if move_id is not None:
                    row = dict(zip(value_names(table), values, strict=True))
                    return StoredRow(place.region_code, place.key, seq, update_time, row)
            found = await self.look(dataset, place, _WRITABLE)
            if isinstance(found, FenceMiss):
                return found
            if found.departure is not None or not found.live_version or if_version not in (None, found.live_version):
                return found
        raise DatabaseUnavailable("the row changes faster than it can be moved")

    async def depart(self, dataset: Dataset, place: ReadKey, move_id: str) -> OldHome | FenceMiss | None:
        """Lets the row go, if it is as it was prepared. None: it has gone, now or before; otherwise what stands."""
        arguments = (*place, dataset.name, move_id)
        records = await self._database.fetch(statements.depart(dataset_table(dataset)), *arguments)
        if records and records[0][0]:
            return None
        found = await self.look(dataset, place, _WRITABLE)
        if isinstance(found, FenceMiss):
            return found
        known = found.departure
        has_gone = known is not None and known.plan.move_id == move_id and known.state is DepartureState.DEPARTED
        return None if has_gone else found

    async def void(self, dataset: Dataset, place: ReadKey, move_id: str) -> DepartureState | FenceMiss | None:
        """Lets a departure that is only prepared never happen; returns its state now, None when there is none."""
        records = await self._database.fetch(statements.void(dataset_table(dataset)), *place, dataset.name, move_id)
        if not records:
            return await self._miss(dataset, place)
        return DepartureState(records[0][0]) if records[0][0] else None

    async def forget(self, dataset: Dataset, place: ReadKey, move_id: str) -> None:
        """Deletes a departure that is over at both homes; without effect where the fence refuses."""
        await self._database.fetch(statements.forget(dataset_table(dataset)), *place, dataset.name, move_id)

    async def look(
        self, dataset: Dataset, place: ReadKey, modes: Collection[FenceMode] = _READABLE
    ) -> OldHome | FenceMiss:
        """What there is of a row at its old home, in one of the modes of its fence."""
        records = await self._database.fetch(
            statements.look(dataset_table(dataset)), *place, dataset.name, is_repeatable=True
        )
        if (miss := _miss_of(records, place, modes)) is not None:
            return miss
        _, _, seq, *departure = records[0]
        return OldHome(seq or 0, _departure(place, dataset.name, departure) if departure[0] is not None else None)

    async def overdue_departures(self, age: timedelta, limit: int, datasets: Mapping[str, Dataset]) -> list[Departure]:
        """Departures older than that, oldest first, in shards that are served here; of known datasets only."""
        records = await self._database.fetch(statements.OVERDUE_DEPARTURES, age, limit, is_repeatable=True)
        return [
            _departure(_place(datasets[record[3]], tuple(record)), record[3], record[5:])
            for record in records
            if record[3] in datasets
        ]

    # ---- the new home -----------------------------------------------------------------------------------------------

    async def arrive(self, dataset: Dataset, place: ReadKey, row: ArrivingRow) -> Arrival:
        """Keeps the row's place and its values. Not done again for a move that has arrived.

        Returns `Written`, with the first result, when the request has been settled here before.
        """
        table = dataset_table(dataset)
        values = [row.values.get(name) for name in value_names(table)]
        for _ in range(MAX_ROUNDS):
            try:
                records = await self._database.fetch(
                    statements.arrive(table), *place, dataset.name, row.move_id, row.from_region_code, row.request_id,
                    *values,
                )  # fmt: skip
            except asyncpg.UniqueViolationError:
                records = []
            if records:
                return Arrived()
            found = await self.find(dataset, place, row.request_id, _WRITABLE)
            if isinstance(found, FenceMiss):
                return found
            if found.first_result is not None:
                return found.first_result
            if found.arriving is not None:
                return Arrived() if found.arriving[0] == row.move_id else Awaited()
            if found.live_version:
                return Occupied()
        raise DatabaseUnavailable("the row changes faster than it can be moved")

    async def settle(self, dataset: Dataset, place: ReadKey, move_id: str) -> Written | FenceMiss | None:
        """Makes the row live, and remembers its request. None: there is no such arrival, or no more."""
        records = await self._database.fetch(statements.settle(dataset_table(dataset)), *place, dataset.name, move_id)
        if not records:
            return await self._miss(dataset, place)
        seq, time = records[0]
        return Written(seq, time) if seq is not None else None

    async def cancel(self, dataset: Dataset, place: ReadKey, move_id: str) -> FenceMiss | None:
        """Forgets an arrival, if there is one: the row will not come."""
        records = await self._database.fetch(statements.cancel(dataset_table(dataset)), *place, dataset.name, move_id)
        return None if records else await self._miss(dataset, place)

    async def find(
        self, dataset: Dataset, place: ReadKey, request_id: str, modes: Collection[FenceMode] = _READABLE
    ) -> NewHome | FenceMiss:
        """What there is of a row at its new home, and what came of the request there."""
        records = await self._database.fetch(
            statements.find(dataset_table(dataset)), *place, dataset.name, request_id, is_repeatable=True
        )
        if (miss := _miss_of(records, place, modes)) is not None:
            return miss
        _, _, seq, move_id, arriving_request, done_seq, done_time = records[0]
        return NewHome(
            seq or 0,
            (move_id, arriving_request) if move_id is not None else None,
            Written(done_seq, done_time, is_replay=True) if done_seq is not None else None,
        )

    async def overdue_arrivals(self, age: timedelta, limit: int, datasets: Mapping[str, Dataset]) -> list[Expected]:
        """Arrivals older than that, oldest first, in shards that are served here; of known datasets only."""
        records = await self._database.fetch(statements.OVERDUE_ARRIVALS, age, limit, is_repeatable=True)
        return [
            Expected(_place(datasets[record[3]], tuple(record)), record[3], record[5], record[6])
            for record in records
            if record[3] in datasets
        ]

    async def _miss(self, dataset: Dataset, place: ReadKey) -> FenceMiss:
        """Why the fence has refused a step; one that lets pass by now counts as refusing still."""
        found = await self.look(dataset, place, _WRITABLE)
        return found if isinstance(found, FenceMiss) else FenceMiss(FenceMode.SERVING, place.epoch)


def _place(dataset: Dataset, record: Sequence[Any]) -> ReadKey:
    region_code, shard, epoch, _, key = record[:5]
    return ReadKey(region_code, shard, epoch, int(key) if dataset.key_type is KeyType.INT64 else key)


def _departure(place: ReadKey, dataset: str, record: Sequence[Any]) -> Departure:
    move_id, to_region_code, version, state, request_id, purpose, asking_idcs = record
    plan = MovePlan(move_id, to_region_code, request_id, purpose, tuple(asking_idcs))
    return Departure(place, dataset, plan, version, DepartureState(state))


def _miss_of(records: Sequence[asyncpg.Record], place: ReadKey, modes: Collection[FenceMode]) -> FenceMiss | None:
    """What the fence has against an answer from here."""
    if not records:
        return FenceMiss(None, 0)
    mode, epoch = FenceMode(records[0][0]), records[0][1]
    return None if epoch == place.epoch and mode in modes else FenceMiss(mode, epoch)
