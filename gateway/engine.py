"""The engine: resolves, judges and performs operations, so that one statement or one message serves many.

Each round takes one routing table, judges every operation by it (`gateway.judge`), hands what is to be done to the
coalescers and the peers, and makes the outcomes (`gateway.branches`). What met a shard on the move waits in the holding
area for a newer table than that one, and is judged again from the start. Every operation ends with exactly one outcome:
a failure of one is an error in its outcome and leaves the others alone.

Laws kept here: L4 (an operation that was not performed is judged again, one that was is never repeated unless repeating
it is harmless), L6 and L8 (see `gateway.judge`). L2 is the database's: it checks epoch and mode in the transaction.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gateway import metrics
from gateway.branches import Call
from gateway.hold import Held, HoldingArea, Wait
from gateway.judge import Deny, Redirect, asking_side, judge_all
from gateway.operations import Action, OperationOutcome
from gateway.plan import Plan, apart
from gateway.spans import start_spans
from gateway.statements import Statements
from policy.errors import NoPolicy, NotOwnedHere, RowMoving
from rowstore.model import ReadKey, RowWrite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from gateway.branches import ForwardBranch, ServeBranch
    from gateway.crossings import Crossings
    from gateway.hold import FollowerLike
    from gateway.judge import Verdict
    from gateway.limits import EngineSettings
    from gateway.operations import CallContext, RowOperation
    from gateway.peers import Peers
    from gateway.statements import Rows
    from policy.compile import Policy
    from runtime.telemetry.tracing import Tracing

    AnyBranch = ServeBranch | ForwardBranch


class Begun(NamedTuple):
    """One round of a call, set off."""

    branches: list[AnyBranch]
    held: list[int]
    """What the table alone holds back."""
    store_revision: int
    """Of the table that all was judged by."""

    def to_hold(self, sent_back: list[int]) -> Held | None:
        """What must be judged again, with what the branches have sent back; None when nothing must."""
        if not self.held and not sent_back:
            return None
        return Held([*self.held, *sent_back], self.store_revision, needs_table=not sent_back)


class Engine:
    """One gateway's engine."""

    def __init__(
        self,
        idc: str,
        follower: FollowerLike,
        store: Rows,
        peers: Peers,
        tracing: Tracing,
        *,
        settings: EngineSettings,
        crossings: Crossings | None = None,
        wrote: Callable[[], None] | None = None,
    ) -> None:
        """Starts nothing.

        Args:
            idc: Where this gateway stands.
            follower: The law and the live gateways; see `policy.view.PolicyView`.
            store: This IDC's rows.
            peers: The other IDCs' gateways.
            tracing: Where spans go.
            settings: Limits.
            crossings: Where crossings of borders are counted; nowhere when left out.
            wrote: Told, at once and without being waited for, when rows have been written here.
        """
        self.idc = idc
        self._follower = follower
        self._statements = Statements(store, tracing, settings, wrote)
        self._peers = peers
        self._tracing = tracing
        self._max_rows = settings.max_batch_rows
        self._holding = HoldingArea(follower, settings.max_held, settings.hold_timeout)
        self._crossings = crossings

    async def execute_one(self, operation: RowOperation, context: CallContext) -> OperationOutcome:
        """Performs one operation."""
        return (await self.execute((operation,), context))[0]

    async def execute(self, operations: Sequence[RowOperation], context: CallContext) -> list[OperationOutcome]:
        """Performs operations together; outcomes in their order.

        Writes of one shard without a condition commit together. What shares a request_id is remembered together.
        """
        call = Call(operations, context, asking_side(self.idc, context))
        held = await self._round(call, range(len(operations)))
        if held is not None:
            await self._settle(call, held)
        outcomes = cast("list[OperationOutcome]", call.outcomes)
        self._count(call, zip(operations, outcomes, strict=True))
        return outcomes

    async def execute_in_parts(
        self, operations: Sequence[RowOperation], context: CallContext
    ) -> AsyncIterator[list[tuple[int, OperationOutcome]]]:
        """Performs operations together and gives each outcome, with its index, as soon as it is there.

        An operation that must wait (for a peer, or a shard on the move) delays no other one.
        """
        call = Call(operations, context, asking_side(self.idc, context))
        begun = self._begin(call, range(len(operations)))
        branches = begun.branches
        told = [False] * len(operations)
        held = begun.to_hold([])
        if len(branches) == 1 and held is None:
            # Nearly always: nobody to wait for but each other.
            await branches[0].future
            held = begun.to_hold(branches.pop().finish())
        by_future: dict[object, AnyBranch] = {branch.future: branch for branch in branches}
        waiting: set[asyncio.Future[Any]] = {branch.future for branch in branches}
        try:
            while True:
                if held is not None:
                    waiting.add(asyncio.ensure_future(self._settle(call, held)))
                if part := _new_outcomes(call, told):
                    self._count(call, ((operations[index], outcome) for index, outcome in part))
                    yield part
                if not waiting:
                    return
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                sent_back: list[int] = []
                for future in done:
                    branch = by_future.get(future)
                    if branch is not None:
                        sent_back += branch.finish()
                    else:
                        future.result()
                held = Held(sent_back, begun.store_revision, needs_table=False) if sent_back else None
        finally:
            for future in waiting:
                future.cancel()

    def _count(self, call: Call, ended: Iterable[tuple[RowOperation, OperationOutcome]]) -> None:
        """Counts what crosses a border where it enters: what a peer has forwarded is counted by that one."""
        if self._crossings is not None and not call.asking.has_hopped:
            table = self._follower.table
            self._crossings.count_outcomes(table.policy if table else None, call.asking.purpose, ended)

    async def drain(self) -> None:
        """Waits until no statement is in flight."""
        await self._statements.drain()

    # ---- rounds -----------------------------------------------------------------------------------------------------

    async def _settle(self, call: Call, held: Held | None) -> None:
        """Holds operations and judges them again until each has an outcome."""
        if call.hold_until is None:
            call.hold_until = self._holding.until(call.context.deadline)
        wait = Wait(call.hold_until)
        while held is not None:
            error = await self._holding.wait(held, wait)
            if error is not None:
                moving = RowMoving("the row is on its way here from another RegionCode", error.retry_after)
                for index in held.indices:
                    call.outcomes[index] = OperationOutcome(error=moving if index in call.arriving else error)
                return
            held = await self._round(call, held.indices)

    async def _round(self, call: Call, indices: Sequence[int]) -> Held | None:
        """Judges and performs operations once; returns those that must be held."""
        begun = self._begin(call, indices)
        try:
            for branch in begun.branches:
                await branch.future
        except asyncio.CancelledError:
            for branch in begun.branches:
                branch.future.cancel()
            raise
        sent_back: list[int] = []
        for branch in begun.branches:
            sent_back += branch.finish()
        return begun.to_hold(sent_back)

    def _begin(self, call: Call, indices: Sequence[int]) -> Begun:
        """Judges operations by one table and sets off what is to be done."""
        table = self._follower.table
        if table is None:
            error = NoPolicy("no policy has been applied to this cluster yet")
            for index in indices:
                call.outcomes[index] = OperationOutcome(error=error)
            return Begun([], [], 0)
        is_fresh = self._follower.is_fresh
        plan = Plan(call, self._follower, table)
        for verdict, alike in judge_all(table, call.operations, indices, call.asking, is_fresh=is_fresh):
            if not plan.add(verdict, alike):
                self._end(call, alike, verdict)
        plan.count()
        for branch in plan.forwards.values():
            self._forward(branch)
        branches: list[AnyBranch] = list(plan.forwards.values())
        for branch in plan.reads.values():
            self._read(branch)
            branches.append(branch)
        for branch in plan.writes.values():
            for part in apart(branch, self._max_rows):
                self._write(part)
                branches.append(part)
        return Begun(branches, plan.held, table.store_revision)

    def _end(self, call: Call, indices: list[int], verdict: Verdict) -> None:
        """The outcome of operations that nothing is done for."""
        if isinstance(verdict, Deny):
            metrics.DENIED.inc(len(indices))
            for index in indices:
                call.outcomes[index] = OperationOutcome(error=verdict.error, decision=verdict.decision)
        elif isinstance(verdict, Redirect):
            metrics.REDIRECTED.inc(len(indices))
            owner = verdict.route.idc
            endpoints = tuple(record.address for record in self._follower.gateways.get(owner, ()))
            error = NotOwnedHere(f"the shard is owned by {owner}; ask there", owner_idc=owner, endpoints=endpoints)
            for index in indices:
                call.outcomes[index] = OperationOutcome(error=error, decision=verdict.decision, owner_idc=owner)

    # ---- setting off ------------------------------------------------------------------------------------------------

    def _read(self, branch: ServeBranch) -> None:
        operations = branch.call.operations
        keys: list[ReadKey] = []
        for verdict, indices in branch.parts:
            route = verdict.route
            region_code, shard, epoch = route.region_code, route.shard, route.epoch
            keys += [ReadKey(region_code, shard, epoch, operations[index].key) for index in indices]
        reads = self._statements.reads(operations[branch.indices[0]].dataset)
        spans = start_spans(self._tracing, self.idc, branch)
        branch.future = reads.submit(keys, branch.call.context.deadline, None, tuple(spans.values()))

    def _write(self, branch: ServeBranch) -> None:
        operations = branch.call.operations
        writes: list[RowWrite] = []
        is_guarded = False
        for verdict, indices in branch.parts:
            route = verdict.route
            region_code, shard, epoch = route.region_code, route.shard, route.epoch
            is_guarded = is_guarded or verdict.is_guarded
            is_put = operations[indices[0]].action is Action.PUT
            for index in indices:
                operation = operations[index]
                values = operation.values if is_put else None
                writes.append(
                    RowWrite(
                        region_code, shard, epoch, operation.key, values, operation.if_version, operation.request_id
                    )
                )
        guard = self._guard(branch.policy) if is_guarded else None
        spans = start_spans(self._tracing, self.idc, branch)
        coalescer = self._statements.writes(operations[branch.indices[0]].dataset)
        branch.future = coalescer.submit(writes, branch.call.context.deadline, guard, tuple(spans.values()))

    def _guard(self, judged_by: Policy) -> Callable[[], bool]:
        """Whether what was judged by this policy may still begin (law L6)."""
        follower = self._follower

        def stands() -> bool:
            table = follower.table
            return table is not None and table.policy is judged_by and follower.is_fresh

        return stands

    def _forward(self, branch: ForwardBranch) -> None:
        call, context = branch.call, branch.call.context
        idc = branch.parts[0][0].route.idc
        operations = [call.operations[index] for index in branch.indices]
        spans = start_spans(self._tracing, self.idc, branch, peer_idc=idc)
        callers = [operation.traceparent or context.traceparent for operation in operations]
        branch.future = self._peers.submit(
            idc,
            operations,
            [spans.get(caller, caller) for caller in callers] if spans else callers,
            purpose=context.purpose,
            origin_idc=context.origin_idc,
            deadline=context.deadline,
        )


def _new_outcomes(call: Call, told: list[bool]) -> list[tuple[int, OperationOutcome]]:
    """The outcomes that have not been told yet; marks them as told."""
    part: list[tuple[int, OperationOutcome]] = []
    for index, outcome in enumerate(call.outcomes):
        if outcome is not None and not told[index]:
            told[index] = True
            part.append((index, outcome))
    return part
