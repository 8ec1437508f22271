"""An old home and a new one, in databases of their own, and a row's way between them one step at a time."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.model import ReadKey, StoredRow, Written
from rowstore.row_moves import ArrivingRow, Departure, DepartureState, MovePlan, OldHome

if TYPE_CHECKING:
    from rowstore.model import ReadOutcome
    from rowstore.store import RowStore

OLD, NEW = "DE", "FR"
EVERY_TYPE = Dataset("things", KeyType.INT64, {f"{kind}_column": Column(f"{kind}_column", kind) for kind in ColumnType})


def plan(request_id: str = "") -> MovePlan:
    return MovePlan(secrets.token_hex(8), NEW, request_id or secrets.token_hex(4), "moving", ("fra",))


@dataclass
class Homes:
    """Drives the steps of a move with the real statements."""

    dataset: Dataset
    old: RowStore
    new: RowStore
    key: str | int
    shard: int = 0
    steps: list[str] = field(default_factory=list)

    @property
    def leaving(self) -> ReadKey:
        return ReadKey(OLD, self.shard, 1, self.key)

    @property
    def coming(self) -> ReadKey:
        return ReadKey(NEW, self.shard, 1, self.key)

    async def read(self) -> tuple[ReadOutcome, ReadOutcome]:
        """The row under its old and its new name."""
        (old,) = await self.old.read(self.dataset, [self.leaving])
        (new,) = await self.new.read(self.dataset, [self.coming])
        return old, new

    async def prepare(self, move: MovePlan, if_version: int | None = None) -> StoredRow:
        row = await self.old.moves.prepare(self.dataset, self.leaving, if_version, move)
        assert isinstance(row, StoredRow), row
        return row

    async def arrive(self, move: MovePlan, row: StoredRow):
        arriving = ArrivingRow(move.move_id, OLD, move.request_id, row.values)
        return await self.new.moves.arrive(self.dataset, self.coming, arriving)

    async def depart(self, move: MovePlan):
        return await self.old.moves.depart(self.dataset, self.leaving, move.move_id)

    async def settle(self, move: MovePlan):
        return await self.new.moves.settle(self.dataset, self.coming, move.move_id)

    async def cancel(self, move: MovePlan):
        return await self.new.moves.cancel(self.dataset, self.coming, move.move_id)

    async def forget(self, move: MovePlan) -> None:
        await self.old.moves.forget(self.dataset, self.leaving, move.move_id)

    async def departure(self) -> Departure | None:
        found = await self.old.moves.look(self.dataset, self.leaving)
        assert isinstance(found, OldHome)
        return found.departure

    async def sweep(self) -> None:
        """Ends whatever was broken off, as a gateway does that finds the departure."""
        departure = await self.departure()
        if departure is None:
            return
        move = departure.plan
        if await self.old.moves.void(self.dataset, self.leaving, move.move_id) is DepartureState.DEPARTED:
            await self.settle(move)
        else:
            await self.cancel(move)
        await self.forget(move)

    async def move(self, move: MovePlan) -> Written:
        row = await self.prepare(move)
        await self.arrive(move, row)
        assert await self.depart(move) is None
        settled = await self.settle(move)
        assert isinstance(settled, Written)
        await self.forget(move)
        return settled
