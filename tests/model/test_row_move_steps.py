"""A row's move is broken off after every prefix of its steps, with somebody writing at every place in between.

The steps are the real statements on two databases. Whoever finds what was left behind ends it, in any order and twice:
then exactly one row is live, with the right values, and nothing is on its way any more (laws L3, L4).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from rowstore.model import Arriving, Missing, ShardEpoch, StoredRow
from rowstore.row_moves import DepartureState, MovePlan, NewHome, OldHome
from tests.support.postgres import create_database, database_url, fresh_database, postgres_server
from tests.support.row_databases import CUSTOMERS, prepare, put, row_database
from tests.support.row_move_homes import NEW, Homes, plan

if TYPE_CHECKING:
    from runtime.embedded.postgres import EmbeddedPostgres

__all__ = ["database_url", "fresh_database", "postgres_server"]

STEPS = ("prepare", "arrive", "depart", "settle", "forget")
MOVED = {"name": "Ada", "spend": 12}
WRITTEN = {"name": "Grace", "spend": 13}
WRITERS = ("", "puts at the old home", "deletes at the old home", "puts at the new home", "deletes at the new home")
SWEEPS = ("departure", "arrival", "departure twice", "arrival, then departure", "a late arrival, then arrival")


class Run:
    """One move of one row."""

    def __init__(self, homes: Homes) -> None:
        self.homes = homes
        self.move: MovePlan = plan()
        self.row: StoredRow | None = None

    async def step(self, name: str) -> None:
        homes, move = self.homes, self.move
        match name:
            case "prepare":
                found = await homes.old.moves.prepare(CUSTOMERS, homes.leaving, None, move)
                self.row = found if isinstance(found, StoredRow) else None
            case "arrive" if self.row is not None:
                await homes.arrive(move, self.row)
            case "depart":
                if await homes.depart(move) is not None:
                    await self.sweep("departure")
            case "settle" if await self.has_left():
                await homes.settle(move)
            case "forget" if await self.has_left():
                await homes.forget(move)
            case _:
                pass

    async def has_left(self) -> bool:
        departure = await self.homes.departure()
        return departure is not None and departure.state is DepartureState.DEPARTED

    async def write(self, who: str) -> None:
        action, _, where = who.partition(" at the ")
        if not action:
            return
        values = WRITTEN if action == "puts" else None
        store, region = (self.homes.old, "DE") if where == "old home" else (self.homes.new, NEW)
        await store.write(CUSTOMERS, [put(self.homes.key, {}, region=region)._replace(values=values)])

    async def sweep(self, how: str) -> None:
        for one in how.split(", then "):
            match one:
                case "departure":
                    await self.homes.sweep()
                case "departure twice":
                    await self.homes.sweep()
                    await self.homes.sweep()
                case "a late arrival" if self.row is not None and await self.homes.departure() is None:
                    await self.homes.arrive(self.move, self.row)
                case "arrival":
                    await self.inquire()
                case _:
                    pass

    async def inquire(self) -> None:
        """What the new home's sweeper does."""
        found = await self.homes.new.moves.find(CUSTOMERS, self.homes.coming, "")
        assert isinstance(found, NewHome)
        if found.arriving is None:
            return
        departure = await self.homes.departure()
        if departure is None:
            await self.homes.cancel(self.move)
        elif departure.state is DepartureState.DEPARTED:
            await self.homes.settle(self.move)

    async def check_instant(self) -> None:
        """Never two, never none; unless somebody else writes, who may do as they like."""
        old, new = await self.homes.read()
        assert not (isinstance(old, StoredRow) and isinstance(new, StoredRow)), "two"
        assert not (isinstance(old, Missing) and isinstance(new, Missing)), "none"

    async def check_end(self, steps: int, writer: str, place: int) -> None:
        old, new = await self.homes.read()
        assert await self.homes.departure() is None
        assert not isinstance(new, Arriving)
        assert isinstance(await self.homes.old.moves.look(CUSTOMERS, self.homes.leaving), OldHome)
        live = [side.values for side in (old, new) if isinstance(side, StoredRow)]
        if not writer:
            assert live == [MOVED], (steps, live)
            assert isinstance(new, StoredRow) == (steps >= STEPS.index("depart") + 1)
        elif writer.startswith("puts"):
            # The newest write stands where it was written, and nothing that it has replaced.
            where = old if "old" in writer else new
            has_moved_on = "old" in writer and place < 1 and steps >= STEPS.index("depart") + 1
            where = new if has_moved_on else where
            assert isinstance(where, StoredRow), (steps, writer, place)
            assert where.values == WRITTEN
        else:
            assert live in ([], [MOVED])


@pytest.mark.timeout(300)
async def test_a_move_that_breaks_off_anywhere_ends_with_one_row_and_the_right_one(
    postgres_server: EmbeddedPostgres,
) -> None:
    urls = [await create_database(postgres_server) for _ in range(2)]
    for url in urls:
        await prepare(url)
    async with row_database(urls[0]) as old, row_database(urls[1]) as new:
        await new.store.fences.open([ShardEpoch(NEW, shard, 1) for shard in range(4)])
        cases = itertools.product(range(len(STEPS) + 1), WRITERS, range(len(STEPS)), SWEEPS)
        for number, (steps, writer, place, how) in enumerate(cases):
            if place and not writer:
                continue
            run = Run(Homes(CUSTOMERS, old.store, new.store, f"k-{number}"))
            await old.store.write(CUSTOMERS, [put(run.homes.key, MOVED)])
            for index, step in enumerate(STEPS[:steps]):
                if index == place:
                    await run.write(writer)
                await run.step(step)
                if not writer:
                    await run.check_instant()
            if place >= steps:
                await run.write(writer)
            await run.sweep(how)
            if not writer:
                await run.check_instant()
            # Whatever the first who came by has left.
            await run.sweep("departure")
            await run.sweep("arrival")
            await run.check_end(steps, writer, min(place, steps))
