"""Ends the moves of rows that nobody attends to any more, whichever gateway began them.

Each gateway looks at its own IDC's database: at departures, which it undoes or completes by their state, and at
arrivals whose departure may be over or may never have been theirs (a message that came after all was undone). Every
step is idempotent and passes the fences, so any number of gateways may look at the same.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from gateway.requests import table_of
from gateway.row_move_homes import step_request
from gateway.row_move_receiver import UNKNOWN
from policy.errors import RegiongateError
from regiongate.v1 import shard_service_pb2 as pb
from rowstore.model import FenceMiss
from rowstore.row_moves import DepartureState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.hold import FollowerLike
    from gateway.row_move_homes import RowHomes
    from rowstore.row_moves import Departure, Expected, RowMoves

log = structlog.get_logger("gateway.row_move_sweeper")

DEPARTURE_AGE: Final = timedelta(seconds=2)
"""A conductor that lives is done by then, or is refused at its next step."""

ARRIVAL_AGE: Final = timedelta(seconds=5)
"""Longer: its departure's sweeper comes first."""

_MAX_AT_ONCE: Final = 100
_EVERY: Final = 0.5
_STEP_SECONDS: Final = 3.0
_FIRST_REST: Final = 1.0
_LONGEST_REST: Final = 30.0


class RowMoveSweeper:
    """One gateway's."""

    def __init__(self, view: FollowerLike, moves: RowMoves, homes: RowHomes) -> None:
        self._view = view
        self._moves = moves
        self._homes = homes
        self._resting: dict[str, tuple[float, float]] = {}
        """Move -> until when it is left alone, and for how long that was."""
        self._now = asyncio.get_running_loop().time

    async def run(self) -> None:
        """Sweeps until cancelled."""
        problem = ""
        while True:
            await asyncio.sleep(_EVERY)
            try:
                await self.sweep()
            except RegiongateError as error:
                # Also before the tables are there; the schema keeper tells of that.
                if error.reason != problem:
                    log.info("rows on their way are left alone for now", reason=error.reason)
                problem = error.reason
            else:
                problem = ""

    async def sweep(self, departure_age: timedelta = DEPARTURE_AGE, arrival_age: timedelta = ARRIVAL_AGE) -> None:
        """Looks once; raises when this IDC's database does not answer."""
        table = self._view.table
        if table is None:
            return
        datasets = table.policy.datasets
        seen: set[str] = set()
        for departure in await self._moves.overdue_departures(departure_age, _MAX_AT_ONCE, datasets):
            seen.add(departure.plan.move_id)
            await self._try(departure.plan.move_id, departure.place.region_code, lambda d=departure: self._end(d))
        for expected in await self._moves.overdue_arrivals(arrival_age, _MAX_AT_ONCE, datasets):
            seen.add(expected.move_id)
            await self._try(expected.move_id, expected.place.region_code, lambda e=expected: self._inquire(e))
        self._resting = {move_id: rest for move_id, rest in self._resting.items() if move_id in seen}

    async def _try(self, move_id: str, region_code: str, end: Callable[[], Awaitable[None]]) -> None:
        """Tries to end one; one that cannot be ended yet is left alone for a while, and keeps no other waiting long."""
        until, rest = self._resting.get(move_id, (0.0, _FIRST_REST / 2))
        if self._now() < until:
            return
        try:
            await end()
        except RegiongateError as error:
            rest = min(rest * 2, _LONGEST_REST)
            self._resting[move_id] = (self._now() + rest, rest)
            log.warning("a row is on its way and cannot be settled yet", region_code=region_code, reason=error.reason)

    async def _end(self, departure: Departure) -> None:
        """Completes a departure whose row has left; undoes any other."""
        table = table_of(self._view)
        dataset, move_id = table.policy.dataset(departure.dataset), departure.plan.move_id
        state = await self._moves.void(dataset, departure.place, move_id)
        if state is None or isinstance(state, FenceMiss):
            return
        has_left = state is DepartureState.DEPARTED
        step = pb.ROW_MOVE_STEP_SETTLE if has_left else pb.ROW_MOVE_STEP_CANCEL
        route = table.resolve(departure.plan.to_region_code, departure.place.key)
        request = step_request(
            step,
            route,
            departure.dataset,
            departure.place.key,
            move_id=move_id,
            request_id=departure.plan.request_id,
        )
        await self._homes.ask(route.idc, request, _STEP_SECONDS)
        await self._moves.forget(dataset, departure.place, move_id)
        log.info("a row's move was ended", region_code=departure.place.region_code, has_left=has_left)

    async def _inquire(self, expected: Expected) -> None:
        """Asks the old home what to make of an arrival."""
        table = table_of(self._view)
        dataset, key = table.policy.dataset(expected.dataset), expected.place.key
        route = table.resolve(expected.from_region_code, key)
        request = step_request(
            pb.ROW_MOVE_STEP_ASK, route, expected.dataset, key, move_id=expected.move_id, request_id=""
        )
        state = (await self._homes.ask(route.idc, request, _STEP_SECONDS)).state
        if state == DepartureState.DEPARTED:
            await self._moves.settle(dataset, expected.place, expected.move_id)
        elif state == UNKNOWN:
            # A departure goes only after its row was settled or called off, so this arrival came too late.
            await self._moves.cancel(dataset, expected.place, expected.move_id)
