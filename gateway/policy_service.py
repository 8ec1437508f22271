"""`PolicyService`: the rules, read, checked, planned and changed through any gateway.

A thin face of `policy.apply`, `policy.rollouts` and `policy.store`. Everything is read from etcd at the time of the
call, not from this gateway's table: an admin sees what is current, also through a gateway that has fallen behind.
"""

# The ladder's decorator makes parameters positional, which is how grpc passes them.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from gateway.audit_service import list_entries
from gateway.ladder import unary
from gateway.measures import Measured
from gateway.policy_messages import (
    change_messages,
    holding_message,
    move_message,
    page_size,
    read_token,
    revision_message,
    rollout_message,
    stuck_message,
    write_token,
)
from gateway.rollout_view import RolloutView, watch_rollout
from gateway.status import abort, to_finding_message
from policy.apply import Draft, apply_policy, prepare
from policy.errors import InvalidInput, LimitReached, PolicyRejected
from policy.estimate import Load, estimate_seconds, read_pace
from policy.loading import load_policy
from policy.records import DrainRecord, RolloutRecord
from policy.rollouts import Orders, Signature
from policy.store import told_as_ours
from regiongate.v1 import policy_service_pb2 as pb
from regiongate.v1.policy_service_pb2_grpc import PolicyServiceServicer
from runtime.tasks import Begun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import grpc.aio

    from gateway.ladder import Call, Ladder
    from gateway.measures import Measures
    from policy.plan import ShardMove
    from policy.store import PolicyStore

DEFAULT_APPLY_SECONDS = 30.0
DEADLINE_MARGIN = 0.5
"""Seconds kept of the caller's deadline, so that the answer still reaches it."""
MAX_WATCHES = 64


class PolicyService(PolicyServiceServicer):
    """Serves the policy of one cluster."""

    def __init__(self, ladder: Ladder, store: PolicyStore, measures: Measures | None = None) -> None:
        """Serves what is in the store.

        Args:
            ladder: The listener's.
            store: The policy store.
            measures: Tells how much a plan would copy; without it, no plan says so.
        """
        self.ladder = ladder
        self._store = store
        self._orders = Orders(store)
        self._measures = measures
        self._watches = asyncio.Semaphore(MAX_WATCHES)
        self._begun = Begun()

    @unary
    async def GetPolicy(  # noqa: N802, D102
        self, request: pb.GetPolicyRequest, _call: Call
    ) -> pb.GetPolicyResponse:
        if request.revision < 0:
            raise InvalidInput("a revision is not negative", field_name="revision")
        record = await self._store.revision(request.revision)
        with told_as_ours():
            drained = await self._store.client.list(self._store.keys.drained)
        return pb.GetPolicyResponse(
            policy=revision_message(record),
            drained_idcs=[DrainRecord.decode(item.value).idc for item in drained.items],
        )

    @unary
    async def ListPolicyRevisions(  # noqa: N802, D102
        self, request: pb.ListPolicyRevisionsRequest, _call: Call
    ) -> pb.ListPolicyRevisionsResponse:
        size = page_size(request.page_size)
        newest = read_token(request.page_token, "revision") or await self._store.newest_revision()
        found = await self._store.revisions(newest, size)
        oldest = newest - len(found)
        return pb.ListPolicyRevisionsResponse(
            revisions=[revision_message(record, with_document=False) for record in found],
            next_page_token=write_token("revision", oldest) if oldest > 0 else "",
        )

    @unary
    async def ValidatePolicy(  # noqa: N802, D102
        self, request: pb.ValidatePolicyRequest, _call: Call
    ) -> pb.ValidatePolicyResponse:
        try:
            findings = (await asyncio.to_thread(load_policy, request.document, request.file)).findings
        except PolicyRejected as error:
            findings = error.findings
        return pb.ValidatePolicyResponse(findings=map(to_finding_message, findings))

    @unary
    async def PlanPolicy(  # noqa: N802, D102
        self, request: pb.PlanPolicyRequest, _call: Call
    ) -> pb.PlanPolicyResponse:
        try:
            prepared = await prepare(self._store, Draft(request.document, request.file, rebalance=request.rebalance))
        except PolicyRejected as error:
            return pb.PlanPolicyResponse(findings=map(to_finding_message, error.findings))
        plan = prepared.plan
        measured = await self._measure(plan.moved)
        return pb.PlanPolicyResponse(
            findings=map(to_finding_message, prepared.findings),
            parent=prepared.snapshot.base.revision,
            assigned=change_messages(plan.assigned),
            moved=change_messages(plan.moved, measured.sizes),
            schema_changes=plan.schema_changes,
            access_changes=(pb.AccessChange(sentence=it.sentence, example=it.example) for it in plan.access_changes),
            holding_changes=map(holding_message, plan.holding_changes),
            estimated_seconds=await self._estimate(plan.moved, measured),
            unreachable=measured.unreachable,
            fingerprint=prepared.fingerprint,
        )

    @unary
    async def ApplyPolicy(  # noqa: N802, D102
        self, request: pb.ApplyPolicyRequest, call: Call
    ) -> pb.ApplyPolicyResponse:
        draft = Draft(
            request.document,
            request.file,
            request.author,
            request.message,
            request.parent if request.HasField("parent") else None,
            call.traceparent,
            request.rebalance,
            request.plan_fingerprint,
        )
        applied = await self._begun.finish(
            apply_policy(self._store, draft, deadline=_deadline(call), validate_only=request.validate_only)
        )
        return pb.ApplyPolicyResponse(
            revision=applied.revision,
            rollout=applied.rollout,
            findings=map(to_finding_message, applied.findings),
            acknowledged=applied.acknowledged,
            expired=applied.expired,
        )

    @unary
    async def ListAuditEntries(  # noqa: N802, D102
        self, request: pb.ListAuditEntriesRequest, _call: Call
    ) -> pb.ListAuditEntriesResponse:
        token, size = read_token(request.page_token, "audit"), page_size(request.page_size)
        answer = await list_entries(self._store.audit, request, token, size)
        if answer.next_page_token:
            answer.next_page_token = write_token("audit", int(answer.next_page_token))
        return answer

    @unary
    async def GetRollout(  # noqa: N802, D102
        self, request: pb.GetRolloutRequest, _call: Call
    ) -> pb.GetRolloutResponse:
        view = await RolloutView.open(self._store, request.rollout)
        return pb.GetRolloutResponse(rollout=await view.read())

    @unary
    async def ListRollouts(  # noqa: N802, D102
        self, request: pb.ListRolloutsRequest, _call: Call
    ) -> pb.ListRolloutsResponse:
        size, below = page_size(request.page_size), read_token(request.page_token, "rollout")
        with told_as_ours():
            listing = await self._store.client.list(self._store.keys.rollouts)
        # By when the store got to know them: no clock of a gateway decides the order.
        found = sorted(listing.items, key=lambda item: -item.create_revision)
        found = [item for item in found if not below or item.create_revision < below]
        return pb.ListRolloutsResponse(
            rollouts=[rollout_message(RolloutRecord.decode(item.value)) for item in found[:size]],
            next_page_token=write_token("rollout", found[size - 1].create_revision) if len(found) > size else "",
        )

    async def WatchRollout(  # noqa: N802, D102
        self, request: pb.WatchRolloutRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchRolloutResponse]:
        call: Call | None = None
        try:
            call = self.ladder.enter("WatchRollout", context)
            if self._watches.locked():
                raise LimitReached(f"{MAX_WATCHES} rollouts are being watched already", limit="rollout watches")
            async with self._watches, aclosing(watch_rollout(self._store, request.rollout)) as states:
                async for rollout in states:
                    yield pb.WatchRolloutResponse(rollout=rollout)
        except Exception as error:  # noqa: BLE001 (`abort` maps every error, and logs the unexpected)
            await abort(context, error, where="WatchRollout", traceparent=call.traceparent if call else "")
        finally:
            if call is not None:
                self.ladder.leave(call)

    @unary
    async def CancelRollout(  # noqa: N802, D102
        self, request: pb.CancelRolloutRequest, _call: Call
    ) -> pb.CancelRolloutResponse:
        cancelled = await self._begun.finish(self._orders.cancel(request.rollout, request.author))
        return pb.CancelRolloutResponse(
            rollout=rollout_message(cancelled.record),
            going_on=[move_message(move, phase, None) for move, phase in cancelled.going_on],
        )

    @unary
    async def PauseRollout(  # noqa: N802, D102
        self, request: pb.PauseRolloutRequest, _call: Call
    ) -> pb.PauseRolloutResponse:
        return pb.PauseRolloutResponse(
            rollout=rollout_message(await self._begun.finish(self._orders.pause(request.rollout)))
        )

    @unary
    async def ResumeRollout(  # noqa: N802, D102
        self, request: pb.ResumeRolloutRequest, _call: Call
    ) -> pb.ResumeRolloutResponse:
        return pb.ResumeRolloutResponse(
            rollout=rollout_message(await self._begun.finish(self._orders.resume(request.rollout)))
        )

    @unary
    async def MoveShard(  # noqa: N802, D102
        self, request: pb.MoveShardRequest, call: Call
    ) -> pb.MoveShardResponse:
        signature = Signature(request.author, request.message, call.traceparent)
        order = self._orders.move_shard(request.region_code, request.shard, request.to_idc, signature)
        return pb.MoveShardResponse(rollout=(await self._begun.finish(order)).rollout)

    @unary
    async def DrainIdc(  # noqa: N802, D102
        self, request: pb.DrainIdcRequest, call: Call
    ) -> pb.DrainIdcResponse:
        signature = Signature(request.author, request.message, call.traceparent)
        drained = await self._begun.finish(self._orders.drain_idc(request.idc, signature))
        return pb.DrainIdcResponse(
            rollout=drained.rollout, moved=change_messages(drained.moved), stuck=map(stuck_message, drained.stuck)
        )

    @unary
    async def UndrainIdc(  # noqa: N802, D102
        self, request: pb.UndrainIdcRequest, _call: Call
    ) -> pb.UndrainIdcResponse:
        await self._begun.finish(self._orders.undrain_idc(request.idc, request.author))
        return pb.UndrainIdcResponse()

    async def _measure(self, moved: Sequence[ShardMove]) -> Measured:
        return await self._measures.measure(moved) if self._measures is not None and moved else Measured()

    async def _estimate(self, moved: Sequence[ShardMove], measured: Measured) -> float | None:
        """Seconds that the moves will take; None when what is copied is not known, or how fast."""
        if not moved or any(move.key not in measured.sizes for move in moved):
            return None
        loads: dict[tuple[str, str], Load] = {}
        for move in moved:
            pair = move.from_idc, move.to_idc
            known = loads.get(pair, Load(0, 0))
            loads[pair] = Load(known.moves + 1, known.rows + measured.sizes[move.key][0])
        return estimate_seconds(loads, await read_pace(self._store))


def _deadline(call: Call) -> float:
    remaining = cast("float | None", call.grpc.time_remaining())  # the stub forgets calls without a deadline
    seconds = DEFAULT_APPLY_SECONDS if remaining is None else max(0.0, remaining - DEADLINE_MARGIN)
    return asyncio.get_running_loop().time() + seconds
