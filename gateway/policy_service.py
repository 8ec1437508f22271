"""`PolicyService`: the rules, read, checked, planned and changed through any gateway.

A thin face of `policy.apply` and `policy.store`. Everything is read from etcd at the time of the call, not from this
gateway's table: an admin sees what is current, also through a gateway that has fallen behind.
"""

# The ladder's decorator makes parameters positional, which is how grpc passes them.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
import base64
import binascii
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.audit_service import list_entries
from gateway.ladder import unary
from gateway.status import abort, to_finding_message
from policy.apply import Draft, apply_policy, prepare
from policy.audit.facts import rules_hash
from policy.errors import InvalidInput, InvalidPageToken, LimitReached, PolicyRejected
from policy.loading import load_policy
from policy.records import RolloutRecord
from policy.store import told_as_ours
from regiongate.v1 import policy_service_pb2 as pb
from regiongate.v1.policy_service_pb2_grpc import PolicyServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import grpc.aio

    from gateway.ladder import Call, Ladder
    from policy.apply import Applied
    from policy.plan import ShardMove
    from policy.records import PolicyRevision
    from policy.store import PolicyStore

DEFAULT_PAGE = 100
MAX_PAGE = 1000
DEFAULT_APPLY_SECONDS = 30.0
DEADLINE_MARGIN = 0.5
"""Seconds kept of the caller's deadline, so that the answer still reaches it."""
MAX_WATCHES = 64


class PolicyService(PolicyServiceServicer):
    """Serves the policy of one cluster."""

    def __init__(self, ladder: Ladder, store: PolicyStore) -> None:
        self.ladder = ladder
        self._store = store
        self._watches = asyncio.Semaphore(MAX_WATCHES)
        self._applying: set[asyncio.Task[Applied]] = set()

    @unary
    async def GetPolicy(  # noqa: N802, D102
        self, request: pb.GetPolicyRequest, _call: Call
    ) -> pb.GetPolicyResponse:
        if request.revision < 0:
            raise InvalidInput("a revision is not negative", field_name="revision")
        return pb.GetPolicyResponse(policy=_revision(await self._store.revision(request.revision)))

    @unary
    async def ListPolicyRevisions(  # noqa: N802, D102
        self, request: pb.ListPolicyRevisionsRequest, _call: Call
    ) -> pb.ListPolicyRevisionsResponse:
        size = _page_size(request.page_size)
        newest = _read_token(request.page_token, "revision") or await self._store.newest_revision()
        found = await self._store.revisions(newest, size)
        oldest = newest - len(found)
        return pb.ListPolicyRevisionsResponse(
            revisions=[_revision(record, with_document=False) for record in found],
            next_page_token=_write_token("revision", oldest) if oldest > 0 else "",
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
        return pb.PlanPolicyResponse(
            findings=map(to_finding_message, prepared.findings),
            parent=prepared.snapshot.base.revision,
            fingerprint=prepared.fingerprint,
            assigned=_changes(plan.assigned),
            moved=_changes(plan.moved),
            schema_changes=plan.schema_changes,
            access_changes=(pb.AccessChange(sentence=it.sentence, example=it.example) for it in plan.access_changes),
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
        # Shielded: what a caller that gives up has begun is brought to its end, and logged.
        applying = asyncio.create_task(
            apply_policy(self._store, draft, deadline=_deadline(call), validate_only=request.validate_only)
        )
        self._applying.add(applying)
        applying.add_done_callback(self._forget)
        applied = await asyncio.shield(applying)
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
        token, size = _read_token(request.page_token, "audit"), _page_size(request.page_size)
        answer = await list_entries(self._store.audit, request, token, size)
        if answer.next_page_token:
            answer.next_page_token = _write_token("audit", int(answer.next_page_token))
        return answer

    @unary
    async def GetRollout(  # noqa: N802, D102
        self, request: pb.GetRolloutRequest, _call: Call
    ) -> pb.GetRolloutResponse:
        return pb.GetRolloutResponse(rollout=_rollout(await self._store.rollout(request.rollout)))

    @unary
    async def ListRollouts(  # noqa: N802, D102
        self, request: pb.ListRolloutsRequest, _call: Call
    ) -> pb.ListRolloutsResponse:
        size = _page_size(request.page_size)
        below = _read_token(request.page_token, "rollout")
        found = [r for r in await self._store.rollouts() if not below or r.policy_revision < below]
        page = found[:size]
        return pb.ListRolloutsResponse(
            rollouts=map(_rollout, page),
            next_page_token=_write_token("rollout", page[-1].policy_revision) if len(found) > size else "",
        )

    async def WatchRollout(  # noqa: N802, D102
        self, request: pb.WatchRolloutRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchRolloutResponse]:
        call: Call | None = None
        try:
            call = self.ladder.enter("WatchRollout", context)
            if self._watches.locked():
                raise LimitReached(f"{MAX_WATCHES} rollouts are being watched already", limit="rollout watches")
            async with self._watches:
                await self._store.rollout(request.rollout)
                async for record in self._states(request.rollout):
                    yield pb.WatchRolloutResponse(rollout=_rollout(record))
        except Exception as error:  # noqa: BLE001 (`abort` maps every error, and logs the unexpected)
            await abort(context, error, where="WatchRollout", traceparent=call.traceparent if call else "")
        finally:
            if call is not None:
                self.ladder.leave(call)

    def _forget(self, applying: asyncio.Task[Applied]) -> None:
        self._applying.discard(applying)
        if not applying.cancelled():
            applying.exception()  # seen here, since the caller may have gone

    async def _states(self, rollout: str) -> AsyncIterator[RolloutRecord]:
        """The rollout now, then each state that it comes to, until it has ended."""
        key = self._store.keys.rollout(rollout)
        with told_as_ours():
            async with aclosing(self._store.client.follow(key)) as batches:
                async for batch in batches:
                    items = (*batch.items, *(event.item for event in batch.events if event.kind == "put"))
                    for record in (RolloutRecord.decode(item.value) for item in items if item.key == key):
                        yield record
                        if record.state != "running":
                            return


def _deadline(call: Call) -> float:
    remaining = cast("float | None", call.grpc.time_remaining())  # the stub forgets calls without a deadline
    seconds = DEFAULT_APPLY_SECONDS if remaining is None else max(0.0, remaining - DEADLINE_MARGIN)
    return asyncio.get_running_loop().time() + seconds


def _page_size(asked: int) -> int:
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidInput(f"page_size is 1 to {MAX_PAGE}", field_name="page_size")
    return asked or DEFAULT_PAGE


def _write_token(kind: str, number: int) -> str:
    return base64.urlsafe_b64encode(f"{kind}:{number}".encode()).decode()


def _read_token(token: str, kind: str) -> int:
    """The number in a token of that kind; 0 without a token."""
    if not token:
        return 0
    try:
        found, _, number = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").partition(":")
        if found == kind and 0 < int(number) < 2**63:
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise InvalidPageToken("the page token was not made by this list", field_name="page_token")


def _time(text: str) -> Timestamp | None:
    if not text:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromisoformat(text))
    return stamp


def _revision(record: PolicyRevision, *, with_document: bool = True) -> pb.PolicyRevision:
    return pb.PolicyRevision(
        revision=record.revision,
        parent=record.parent,
        document=record.document if with_document else "",
        author=record.author,
        message=record.message,
        create_time=_time(record.create_time),
        rollout=record.rollout,
        rules_hash=rules_hash(record) if with_document else "",
    )


def _changes(moves: Iterable[ShardMove]) -> Iterable[pb.ShardChange]:
    return (
        pb.ShardChange(region_code=move.region_code, shard=move.shard, from_idc=move.from_idc, to_idc=move.to_idc)
        for move in moves
    )


def _rollout(record: RolloutRecord) -> pb.Rollout:
    return pb.Rollout(
        rollout=record.rollout,
        policy_revision=record.policy_revision,
        state=record.state,
        shards_total=record.shards_total,
        shards_done=record.shards_done,
        create_time=_time(record.create_time),
        end_time=_time(record.end_time),
        note=record.note,
        traceparent=record.traceparent,
    )
