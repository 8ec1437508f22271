"""MoveRow: the gateway of the old home's owner conducts the row's way to its new RegionCode, step by step.

The order of the steps is what keeps the row from being seen twice or not at all (`rowstore.row_moves`). Before the row
has left its old home, whatever fails undoes the move; after that, it only goes on. A conductor that dies leaves a
departure behind, and the sweeper of any gateway of that IDC goes on with it (`gateway.row_move_sweeper`). So the way is
not cut short when its caller goes: it runs in a task of its own.

A caller who repeats a request_id gets the first result: from a departure that is not over yet, or from the new home,
which remembers.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from gateway.crossings import Asked, named_purpose
from gateway.decisions import DecisionMessages
from gateway.hold import Held, Wait
from gateway.judge import Deny, Forward, Hold, Redirect, asking_side, judge
from gateway.operations import Action, RowOperation
from gateway.requests import table_of
from gateway.row_move_homes import receipt_of, step_request
from gateway.row_move_law import judge_move, parse_move
from gateway.row_move_receiver import SETTLED
from gateway.values import fill_cells, set_time
from policy.errors import (
    DeadlineExceeded,
    NotOwnedHere,
    RegiongateError,
    RowMoving,
    RowNotFound,
    ShardUnavailable,
    StaleEpoch,
    Unavailable,
    VersionConflict,
)
from policy.model import Operation
from regiongate.v1 import row_service_pb2
from regiongate.v1 import shard_service_pb2 as pb
from rowstore.model import FenceMiss, ReadKey, StoredRow
from rowstore.row_moves import DepartureState, MovePlan, OldHome

if TYPE_CHECKING:
    from datetime import timedelta

    from gateway.crossings import Crossings
    from gateway.hold import FollowerLike
    from gateway.judge import Asking
    from gateway.operations import CallContext
    from gateway.row_move_homes import RowHomes
    from gateway.row_move_law import MoveDecisions, RowMove
    from policy.model import AccessDecision, Route
    from policy.table import RoutingTable
    from rowstore.model import Written
    from rowstore.row_moves import RowMoves

log = structlog.get_logger("gateway.row_move")

MAX_ROUNDS: Final = 4
"""Times that a move begins again because the row was changed under it."""

STEP_SECONDS: Final = 3.0
"""What one step at the other home may take."""

SETTLE_SECONDS: Final = 10.0
"""How long a conductor tries to settle a row that has left, before it leaves that to the sweepers."""

_SETTLE_PAUSE: Final = 0.05
_LONGEST_SETTLE_PAUSE: Final = 1.0


class _Elsewhere(Exception):
    """This IDC's database does not serve the old home: a newer table will tell who does."""


class _Busy(Exception):
    """Another move of the row is not over."""


class _Way(NamedTuple):
    """One row's way: what all its steps share."""

    move: RowMove
    asking: Asking
    place: ReadKey
    """At the old home."""


class RowMover:
    """Moves rows for clients and, where this IDC owns the old home, for peers."""

    def __init__(
        self,
        idc: str,
        view: FollowerLike,
        moves: RowMoves,
        homes: RowHomes,
        *,
        crossings: Crossings,
        hold_timeout: timedelta,
    ) -> None:
        self._idc = idc
        self._view = view
        self._moves = moves
        self._homes = homes
        self._decisions = DecisionMessages()
        self._crossings = crossings
        self._hold_timeout = hold_timeout.total_seconds()
        self._under_way: set[asyncio.Task[row_service_pb2.MoveRowResponse]] = set()

    async def move(
        self, request: row_service_pb2.MoveRowRequest, context: CallContext
    ) -> row_service_pb2.MoveRowResponse:
        """Moves the row, or has the owner of its old home do it.

        Raises:
            InvalidInput, AccessDenied, TableTooOld, NotOwnedHere, NoPolicy: the move is refused.
            RowNotFound, RowExists, VersionConflict: there is no such row to move, or one in its way.
            Unavailable: it may be under way; the same request_id tells when it is tried again.
        """
        move = parse_move(table_of(self._view).policy, request)
        asking = asking_side(self._idc, context)
        now = asyncio.get_running_loop().time
        wait = Wait(min(context.deadline, now() + self._hold_timeout))
        while True:
            table = table_of(self._view)
            try:
                return await self._round(table, move, asking, request, context)
            except _Elsewhere:
                reason, needs_table = ShardUnavailable(f"a shard of {move.region_code} is on the move"), False
            except _Busy:
                reason, needs_table = RowMoving("another move of the row is not over yet"), False
            if now() >= wait.until:
                raise reason
            await wait.by(self._view, Held([0], table.store_revision, needs_table))

    async def drain(self) -> None:
        """Waits until nothing is under way, for a step's time at most: a sweeper goes on with the rest."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=STEP_SECONDS)
            for task in late:
                task.cancel()

    async def _round(
        self,
        table: RoutingTable,
        move: RowMove,
        asking: Asking,
        request: row_service_pb2.MoveRowRequest,
        context: CallContext,
    ) -> row_service_pb2.MoveRowResponse:
        """Judges the move by one table, as a deletion where it leaves, and performs it or hands it on."""
        leaving = RowOperation(Action.DELETE, move.dataset, move.region_code, move.key)
        verdict = judge(table, leaving, asking, is_fresh=self._view.is_fresh)
        if isinstance(verdict, Deny):
            self._count(asking, move.region_code, verdict.decision, verdict.error)
            raise verdict.error
        if isinstance(verdict, Redirect):
            owner = verdict.route.idc
            endpoints = tuple(record.address for record in self._view.gateways.get(owner, ()))
            raise NotOwnedHere(f"the row's shard is owned by {owner}; ask there", owner_idc=owner, endpoints=endpoints)
        if isinstance(verdict, Hold):
            raise _Elsewhere
        try:
            if isinstance(verdict, Forward):
                return await self._forward(verdict.route.idc, request, context)
            place = ReadKey(move.region_code, verdict.route.shard, verdict.route.epoch, move.key)
            return await self._conduct_apart(_Way(move, asking, place), context.deadline)
        except RegiongateError as error:
            self._count(asking, move.region_code, verdict.decision, error)
            raise

    async def _forward(
        self, idc: str, request: row_service_pb2.MoveRowRequest, context: CallContext
    ) -> row_service_pb2.MoveRowResponse:
        seconds = max(0.001, context.deadline - asyncio.get_running_loop().time())
        try:
            return await self._homes.forward(idc, request, context, seconds)
        except NotOwnedHere:
            raise _Elsewhere from None

    def _count(
        self, asking: Asking, region_code: str, decision: AccessDecision | None, error: RegiongateError | None = None
    ) -> None:
        """Counts a crossing of a border, where it enters."""
        if decision is not None and decision.crosses_border and not asking.has_hopped:
            policy = table_of(self._view).policy
            purpose = named_purpose(policy, asking.purpose)
            self._crossings.count(decision, Asked(region_code, Operation.WRITE, purpose), error)

    # ---- the way ----------------------------------------------------------------------------------------------------

    async def _conduct_apart(self, way: _Way, deadline: float) -> row_service_pb2.MoveRowResponse:
        """Conducts in a task that goes on when the caller has gone: a row must not be left on its way."""
        task = asyncio.create_task(self._conduct(way, deadline))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        # Nobody may be left to hear of it.
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        return await asyncio.shield(task)

    async def _conduct(self, way: _Way, deadline: float) -> row_service_pb2.MoveRowResponse:
        move, place = way.move, way.place
        for _ in range(MAX_ROUNDS):
            if asyncio.get_running_loop().time() >= deadline:
                raise DeadlineExceeded("the row changed so often that there was no time to move it")
            decisions, _ = self._judge(way)
            plan = MovePlan(
                secrets.token_hex(16), move.to_region_code, move.request_id, way.asking.purpose, way.asking.askers
            )
            found = await self._moves.prepare(move.dataset, place, move.if_version, plan)
            if isinstance(found, FenceMiss):
                raise _Elsewhere
            if isinstance(found, StoredRow):
                written = await self._carry(way, plan, found)
            else:
                written = await self._without(way, found)
            if written is not None:
                return self._response(way, decisions, written)
        raise RowMoving("the row changes faster than it can be moved")

    async def _carry(self, way: _Way, plan: MovePlan, row: StoredRow) -> Written | None:
        """Takes a row that is prepared through all further steps; None: it was changed under way, begin again."""
        move = way.move
        try:
            answer = await self._arrive(way, plan, row)
            if answer.state == SETTLED:
                # The request was answered before, and somebody has put the row here anew since.
                await self._abandon(way, plan)
                return receipt_of(answer)
            # The law as it is when the row leaves (law L6).
            decisions, _ = self._judge(way)
        except RegiongateError:
            await self._abandon(way, plan)
            raise
        found = await self._moves.depart(move.dataset, way.place, plan.move_id)
        if isinstance(found, FenceMiss):
            # The departure travels with its shard, or is undone here when the shard serves again.
            raise _Elsewhere
        if found is not None:
            await self._abandon(way, plan)
            if move.if_version not in (None, found.live_version):
                raise VersionConflict("the row does not have the demanded version", current=found.live_version)
            return None
        self._count_hand_over(way, decisions)
        return await self._settle(way, plan)

    async def _without(self, way: _Way, found: OldHome) -> Written | None:
        """What a move comes to that finds no row as it should be: a repetition, or an error."""
        move, departure = way.move, found.departure
        if departure is not None:
            is_ours = (
                departure.plan.request_id == move.request_id and departure.plan.to_region_code == move.to_region_code
            )
            if is_ours and departure.state is DepartureState.DEPARTED:
                return await self._settle(way, departure.plan)
            # Alive: another conductor's. Otherwise the sweeper ends it soon.
            raise _Busy
        _, route = self._judge(way)
        answer = await self._ask(pb.ROW_MOVE_STEP_FIND, way, route, "")
        if answer.state == SETTLED:
            return receipt_of(answer)
        if move.if_version is not None:
            raise VersionConflict("the row does not have the demanded version", current=found.live_version)
        if found.live_version:
            return None
        raise RowNotFound("the row does not exist")

    # ---- steps ------------------------------------------------------------------------------------------------------

    def _judge(self, way: _Way) -> tuple[MoveDecisions, Route]:
        """The decisions by the newest table, and the route to the new home by it."""
        table = table_of(self._view)
        route = table.resolve(way.move.to_region_code, way.move.key)
        is_fresh = self._view.is_fresh
        try:
            decisions = judge_move(table.policy, way.move, way.asking, self._idc, route.idc, is_fresh=is_fresh)
        except RegiongateError:
            log.info("a row's move is refused", region_code=way.move.region_code, to=way.move.to_region_code)
            raise
        return decisions, route

    async def _arrive(self, way: _Way, plan: MovePlan, row: StoredRow) -> pb.ReceiveRowResponse:
        _, route = self._judge(way)
        request = self._request(pb.ROW_MOVE_STEP_ARRIVE, way, route, plan.move_id)
        request.from_region_code = way.move.region_code
        request.purpose = plan.purpose
        request.asking_idcs.extend(plan.asking_idcs)
        fill_cells(request.columns, row.values, way.move.dataset)
        return await self._have_done(route, request)

    async def _abandon(self, way: _Way, plan: MovePlan) -> None:
        """Undoes a move that has not happened; what cannot be undone now, a sweeper undoes."""
        with suppress(RegiongateError):
            state = await self._moves.void(way.move.dataset, way.place, plan.move_id)
            # None: a sweeper has undone it meanwhile, perhaps before the arrival that this conductor has asked for.
            if state is None or state is DepartureState.VOID:
                route = table_of(self._view).resolve(way.move.to_region_code, way.move.key)
                await self._ask(pb.ROW_MOVE_STEP_CANCEL, way, route, plan.move_id)
                await self._moves.forget(way.move.dataset, way.place, plan.move_id)

    async def _settle(self, way: _Way, plan: MovePlan) -> Written:
        """Makes a row that has left live at its new home: there is no way back, so this is tried again."""
        now = asyncio.get_running_loop().time
        until, pause = now() + SETTLE_SECONDS, _SETTLE_PAUSE
        while True:
            try:
                route = table_of(self._view).resolve(way.move.to_region_code, way.move.key)
                answer = await self._ask(pb.ROW_MOVE_STEP_SETTLE, way, route, plan.move_id)
                break
            except (Unavailable, DeadlineExceeded):
                if now() + pause >= until:
                    raise RowMoving("the row has left, and its new home does not answer yet: ask again") from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_SETTLE_PAUSE)
        with suppress(RegiongateError):
            await self._moves.forget(way.move.dataset, way.place, plan.move_id)
        if answer.state != SETTLED:
            raise RegiongateError("the new home has settled the row and does not remember its request")
        return receipt_of(answer)

    async def _ask(
        self, step: pb.RowMoveStep.ValueType, way: _Way, route: Route, move_id: str
    ) -> pb.ReceiveRowResponse:
        return await self._have_done(route, self._request(step, way, route, move_id))

    async def _have_done(self, route: Route, request: pb.ReceiveRowRequest) -> pb.ReceiveRowResponse:
        try:
            return await self._homes.ask(route.idc, request, STEP_SECONDS)
        except (StaleEpoch, NotOwnedHere):
            raise ShardUnavailable(f"a shard of {route.region_code} is on the move") from None

    def _request(self, step: pb.RowMoveStep.ValueType, way: _Way, route: Route, move_id: str) -> pb.ReceiveRowRequest:
        move = way.move
        return step_request(step, route, move.dataset.name, move.key, move_id=move_id, request_id=move.request_id)

    # ---- answers ----------------------------------------------------------------------------------------------------

    def _count_hand_over(self, way: _Way, decisions: MoveDecisions) -> None:
        """The row itself may have crossed a border, whoever asked."""
        if decisions.hand_over.crosses_border:
            purpose = named_purpose(table_of(self._view).policy, way.asking.purpose)
            self._crossings.count(decisions.hand_over, Asked(way.move.region_code, Operation.READ, purpose), None)

    def _response(self, way: _Way, decisions: MoveDecisions, written: Written) -> row_service_pb2.MoveRowResponse:
        self._count(way.asking, way.move.region_code, decisions.leave)
        self._count(way.asking, way.move.to_region_code, decisions.come)
        new_home = table_of(self._view).resolve(way.move.to_region_code, way.move.key).idc
        response = row_service_pb2.MoveRowResponse(
            from_decision=self._decisions.message(decisions.leave, self._idc),
            to_decision=self._decisions.message(decisions.come, new_home),
        )
        response.receipt.version = written.version
        set_time(response.receipt.update_time, written.update_time)
        return response
