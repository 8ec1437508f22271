"""Applying a policy: check, plan, store as one transaction, and wait until it is the law everywhere (law L6).

Nothing is stored unless the document stands, its own expectations hold and the plan is possible. The plan is stored
together with the policy, and only if nothing that it rests on has changed: the current policy, the owner of any shard,
the orders of operators. Otherwise it is made again from what is so now; but what somebody has seen and meant (a parent,
a fingerprint) must still be so, or nothing is stored.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from policy.compile import compile_policy
from policy.effect import wait_effective
from policy.errors import InvalidInput, PlanChanged, PolicyNotEffective, PolicyRejected
from policy.findings import Finding, Severity
from policy.loading import LoadedPolicy, load_policy
from policy.plan import Plan, make_plan
from policy.records import PlannedMove, PlanRecord, PolicyRevision, RolloutRecord
from policy.standing import Snapshot, compiled, pause, read_snapshot
from policy.store import GuardFailed, conflict, told_as_ours
from runtime.etcd import compare_mod_revision, put_op

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.cluster import KnownRollout
    from policy.effect import Effect
    from policy.plan import ShardMove
    from policy.records import Keys
    from policy.store import PolicyStore
    from runtime.etcd import Compare, Op

log = structlog.get_logger(__name__)

SCHEMA_GRACE = timedelta(seconds=5)
"""How long `apply` waits for databases to get new datasets and columns, after the law is effective."""
MAX_AUTHOR = 256
MAX_MESSAGE = 4096


@dataclass(frozen=True, slots=True)
class Draft:
    """A document that somebody wants to be the law."""

    document: str
    file: str = ""
    """Named in findings."""
    author: str = ""
    message: str = ""
    parent: int | None = None
    """The revision that the author has read; None: whatever is current."""
    traceparent: str = ""
    rebalance: bool = False
    """Whether every RegionCode is spread by its weights anew, also where its rule has not changed."""
    plan_fingerprint: str = ""
    """Of the plan that the author has seen; empty: none was saved."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that stands, and what applying it would do."""

    loaded: LoadedPolicy
    plan: Plan
    snapshot: Snapshot
    fingerprint: str
    findings: tuple[Finding, ...]
    """All of them, of the document and of the plan."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A policy revision that is effective."""

    revision: int
    rollout: str
    """Empty when no shard had to be assigned."""
    findings: tuple[Finding, ...]
    acknowledged: tuple[str, ...]
    """Gateways that decide by it."""
    expired: tuple[str, ...]
    """Gateways whose lease ran out instead."""


async def prepare(store: PolicyStore, draft: Draft, loaded: LoadedPolicy | None = None) -> Prepared:
    """Checks a document and plans the step to it; nothing is stored.

    Args:
        store: What is current.
        draft: The document, and whether to rebalance.
        loaded: The document, when it has been checked before.

    Raises:
        PolicyRejected: the document does not stand, with every finding.
        StoreUnavailable: etcd does not answer.
    """
    if loaded is None:
        loaded = await asyncio.to_thread(load_policy, draft.document, draft.file)
    snapshot = await read_snapshot(store)
    plan = await asyncio.to_thread(_plan, loaded, snapshot, rebalance=draft.rebalance)
    fingerprint = plan.fingerprint(snapshot.base.revision, loaded.text)
    return Prepared(loaded, plan, snapshot, fingerprint, (*loaded.findings, *plan.findings))


async def apply_policy(
    store: PolicyStore,
    draft: Draft,
    *,
    deadline: float,
    validate_only: bool = False,
    schema_grace: timedelta = SCHEMA_GRACE,
) -> Applied:
    """Makes the document the current revision and waits until the loop's clock says `deadline` for its effect.

    Raises:
        InvalidInput: author or message is too long.
        PolicyRejected: the document does not stand, or the step to it is impossible; with every finding.
        PlanChanged: applying would do something else than the plan that was seen.
        RevisionConflict: another revision than the stated parent is current, or became so meanwhile.
        PolicyNotEffective: stored, but not acknowledged by all in time.
        StoreUnavailable: etcd does not answer.
    """
    check_words(draft.author, draft.message)
    prepared = await prepare(store, draft)
    _check(draft, prepared)
    if validate_only:
        return Applied(0, "", prepared.findings, (), ())
    record, prepared, store_revision = await _store(store, draft, prepared)
    log.info("policy stored", policy_revision=record.revision, parent=record.parent, store_revision=store_revision)
    with told_as_ours():
        effect = await wait_effective(
            store.client,
            store.keys,
            record.revision,
            store_revision,
            deadline=deadline,
            schema_grace=schema_grace.total_seconds() if prepared.plan.schema_changes else 0.0,
        )
    return _applied(record, prepared, effect)


def check_words(author: str, message: str) -> None:
    """Raises `InvalidInput` when somebody has too much to say."""
    for name, text, limit in (("author", author, MAX_AUTHOR), ("message", message, MAX_MESSAGE)):
        if len(text) > limit:
            raise InvalidInput(f"{name} may have {limit} characters", field_name=name)


def plan_record(rollout: str, moved: Iterable[ShardMove]) -> PlanRecord:
    """The moves of a rollout, as they are stored."""
    return PlanRecord(rollout, tuple(PlannedMove(*move) for move in moved))


def superseding(
    keys: Keys, rollouts: Iterable[KnownRollout], by: str, now: str
) -> tuple[tuple[Compare, ...], tuple[Op, ...]]:
    """What a transaction takes in to end rollouts whose place another one takes."""
    compares: list[Compare] = []
    puts: list[Op] = []
    for record, mod_revision in rollouts:
        ended = replace(record, state="superseded", end_time=now, note=f"rollout {by} has taken its place")
        compares.append(compare_mod_revision(keys.rollout(record.rollout), mod_revision))
        puts.append(put_op(keys.rollout(record.rollout), ended.encode()))
    return tuple(compares), tuple(puts)


def _plan(loaded: LoadedPolicy, snapshot: Snapshot, *, rebalance: bool) -> Plan:
    new = compile_policy(loaded.document, snapshot.base.revision + 1)
    return make_plan(compiled(snapshot.base), snapshot.standing, new, loaded, rebalance=rebalance)


async def _store(store: PolicyStore, draft: Draft, prepared: Prepared) -> tuple[PolicyRevision, Prepared, int]:
    """Stores the revision with its plan; plans again for as long as shards switch or orders are given meanwhile."""
    parent = prepared.snapshot.base.revision
    for tries in range(1_000):
        record, rollout = _records(draft, prepared)
        compares, puts = prepared.snapshot.guards, ()
        if rollout is not None:
            ends, ended = superseding(store.keys, prepared.snapshot.rollouts, rollout.rollout, record.create_time)
            plan = plan_record(rollout.rollout, prepared.plan.moved)
            compares, puts = (*compares, *ends), (*ended, put_op(store.keys.plan(rollout.rollout), plan.encode()))
        try:
            stored = await store.commit(prepared.snapshot.base, record, rollout, compares=compares, puts=puts)
        except GuardFailed:
            await pause(tries)
            prepared = await prepare(store, draft, prepared.loaded)
            if prepared.snapshot.base.revision != parent:
                raise conflict(parent, prepared.snapshot.base.revision) from None
            _check(draft, prepared)
        else:
            return record, prepared, stored
    raise AssertionError("`pause` ends this")


def _check(draft: Draft, prepared: Prepared) -> None:
    """Whether this may be stored."""
    base, plan = prepared.snapshot.base, prepared.plan
    if draft.parent is not None and draft.parent != base.revision:
        raise conflict(draft.parent, base.revision)
    if not plan.is_possible:
        first = next(finding for finding in plan.findings if finding.severity is Severity.ERROR)
        raise PolicyRejected(f"the policy cannot follow the current one: {first.message}", findings=prepared.findings)
    if draft.plan_fingerprint not in ("", prepared.fingerprint):
        raise PlanChanged(
            f"applying would do something else than the plan that was saved: it starts from revision {base.revision}, "
            f"assigns {len(plan.assigned)} shards and moves {len(plan.moved)}; plan again and decide again"
        )


def _records(draft: Draft, prepared: Prepared) -> tuple[PolicyRevision, RolloutRecord | None]:
    parent, plan = prepared.snapshot.base.revision, prepared.plan
    now = datetime.now(UTC).isoformat()
    rollout = None
    # Moves under way must not go on by an older plan, also when the new one has none.
    if plan.is_new:
        parts = ((len(plan.assigned), "for their first owner"), (len(plan.moved), "to be moved"))
        waiting = ", ".join(f"{count} {what}" for count, what in parts if count)
        note = f"shards wait: {waiting}" if waiting else "nothing is to be moved any more"
        rollout = RolloutRecord(
            rollout=f"r{parent + 1:08d}",
            policy_revision=parent + 1,
            state="running",
            create_time=now,
            shards_total=len(plan.assigned) + len(plan.moved),
            note=note,
            traceparent=draft.traceparent,
            author=draft.author,
            message=draft.message,
        )
    record = PolicyRevision(
        revision=parent + 1,
        parent=parent,
        document=prepared.loaded.text,
        author=draft.author,
        message=draft.message,
        create_time=now,
        rollout=rollout.rollout if rollout else "",
        rules=json.loads(prepared.loaded.document.to_json()),
    )
    return record, rollout


def _applied(record: PolicyRevision, prepared: Prepared, effect: Effect) -> Applied:
    if not effect.is_effective:
        waiting_for = ", ".join(effect.waiting_for) or "the policy store's word on who is live"
        raise PolicyNotEffective(
            f"policy revision {record.revision} is stored, but not effective yet: waiting for {waiting_for}",
            policy_revision=record.revision,
            waiting_for=effect.waiting_for,
        )
    log.info("policy effective", policy_revision=record.revision, expired=effect.expired)
    behind = effect.schema_waiting_for if prepared.plan.schema_changes else ()
    findings = (*prepared.findings, *map(_schema_pending, behind))
    return Applied(record.revision, record.rollout, findings, effect.acknowledged, effect.expired)


def _schema_pending(idc: str) -> Finding:
    message = f"the database of {idc} does not have the new datasets and columns yet; they follow when it answers"
    return Finding(Severity.WARNING, "SCHEMA_PENDING", message)
