"""A shard that is carried to another IDC takes along the rows that are on their way out of it, and into it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from rowstore.model import Arriving, Missing, ReadKey, ShardEpoch, StoredRow, Written
from rowstore.row_moves import ArrivingRow, Departure, DepartureState, NewHome, OldHome
from tests.support.row_databases import CUSTOMERS, STEP, put
from tests.support.row_move_homes import plan

if TYPE_CHECKING:
    from tests.support.row_databases import MovePair

ADA = {"name": "Ada", "spend": 12}
HERE, THERE = ReadKey("DE", 0, 1, "k"), ReadKey("DE", 0, 2, "k")
ELSEWHERE = ReadKey("FR", 0, 1, "k")


async def test_a_departure_goes_along_and_its_move_is_completed_by_the_new_owner(pair: MovePair) -> None:
    source, target = pair.source.store, pair.target.store
    await source.fences.open([ShardEpoch("FR", 0, 1)])
    await source.write(CUSTOMERS, [put("k", ADA)])
    move = plan("r-1")
    row = await source.moves.prepare(CUSTOMERS, HERE, None, move)
    assert isinstance(row, StoredRow)
    await source.moves.arrive(CUSTOMERS, ELSEWHERE, ArrivingRow(move.move_id, "DE", "r-1", row.values))
    assert await source.moves.depart(CUSTOMERS, HERE, move.move_id) is None
    await pair.move()
    # The old owner has nothing more to say of it, and does not say that there is none.
    assert not isinstance(await source.moves.look(CUSTOMERS, HERE), OldHome)
    assert await source.moves.overdue_departures(timedelta(), 10, {"customers": CUSTOMERS}) == []
    (departure,) = await target.moves.overdue_departures(timedelta(), 10, {"customers": CUSTOMERS})
    assert departure == Departure(THERE, "customers", move, row.version, DepartureState.DEPARTED)
    assert isinstance(await source.moves.settle(CUSTOMERS, ELSEWHERE, move.move_id), Written)
    await target.moves.forget(CUSTOMERS, THERE, move.move_id)
    assert await target.moves.look(CUSTOMERS, THERE) == OldHome(0, None)
    (new,) = await source.read(CUSTOMERS, [ELSEWHERE])
    assert isinstance(new, StoredRow)
    assert new.values == ADA


async def test_an_arrival_goes_along_and_settles_at_the_new_owner(pair: MovePair) -> None:
    source, target = pair.source.store, pair.target.store
    for name in ("settled", "cancelled"):
        await source.moves.arrive(CUSTOMERS, HERE._replace(key=name), ArrivingRow(name, "FR", f"r-{name}", ADA))
    await pair.move()
    keys = [THERE._replace(key=name) for name in ("settled", "cancelled")]
    assert await target.read(CUSTOMERS, keys) == [Arriving(), Arriving()]
    assert await target.write(CUSTOMERS, [put("settled", {}, epoch=2, if_version=0)]) == [Arriving()]
    settled = await target.moves.settle(CUSTOMERS, keys[0], "settled")
    await target.moves.cancel(CUSTOMERS, keys[1], "cancelled")
    assert isinstance(settled, Written)
    live, missing = await target.read(CUSTOMERS, keys)
    assert isinstance(live, StoredRow)
    assert (live.values, live.version) == (ADA, settled.version)
    assert missing == Missing()
    found = await target.moves.find(CUSTOMERS, keys[0], "r-settled")
    assert found == NewHome(settled.version, None, settled._replace(is_replay=True))


async def test_what_is_settled_and_cancelled_while_the_shard_is_copied_arrives_so(pair: MovePair) -> None:
    source, target = pair.source.store, pair.target.store
    for name in ("settled", "cancelled"):
        await source.moves.arrive(CUSTOMERS, HERE._replace(key=name), ArrivingRow(name, "FR", f"r-{name}", ADA))
    await pair.sender.begin_export(STEP)
    await pair.copy()
    await source.moves.settle(CUSTOMERS, HERE._replace(key="settled"), "settled")
    await source.moves.cancel(CUSTOMERS, HERE._replace(key="cancelled"), "cancelled")
    progress = await pair.close_and_copy()
    assert progress.digest == await pair.sender.digest(STEP)
    await pair.receiver.open(STEP)
    live, missing = await target.read(CUSTOMERS, [THERE._replace(key=name) for name in ("settled", "cancelled")])
    assert isinstance(live, StoredRow)
    assert live.values == ADA
    assert missing == Missing()
    (inserted,) = await target.write(CUSTOMERS, [put("cancelled", {}, epoch=2, if_version=0)])
    assert isinstance(inserted, Written)
