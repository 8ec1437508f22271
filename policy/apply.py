"""Applying a policy: check, plan, store as one transaction, and wait until it is the law everywhere (law L6).

Nothing is stored unless the document stands, its own expectations hold and the plan is possible. The plan is made
against the owners that the current policy intends, and stored only if that policy is still current: so no plan can be
overtaken by another policy, nor by the controller that is still assigning.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from policy.compile import compile_policy
from policy.effect import wait_effective
from policy.errors import IllegalMove, InvalidInput, PolicyNotEffective, PolicyRejected, StoreUnavailable
from policy.findings import Finding, Severity
from policy.follower import load_stored
from policy.intent import intended_owners
from policy.loading import LoadedPolicy, load_policy
from policy.plan import Plan, make_plan
from policy.records import PolicyRevision, RolloutRecord
from policy.store import Base, conflict, told_as_ours

if TYPE_CHECKING:
    from policy.compile import Policy
    from policy.effect import Effect
    from policy.store import PolicyStore

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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that stands, and what applying it would do."""

    loaded: LoadedPolicy
    plan: Plan
    base: Base
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


async def prepare(store: PolicyStore, draft: Draft) -> Prepared:
    """Checks a document and plans the step to it; nothing is stored.

    Raises:
        PolicyRejected: the document does not stand, with every finding.
        StoreUnavailable: etcd does not answer.
    """
    loaded = await asyncio.to_thread(load_policy, draft.document, draft.file)
    base = await store.base()
    current = _compiled(base)
    owners = intended_owners(current, await store.owners())
    plan = make_plan(current, owners, compile_policy(loaded.document, base.revision + 1), loaded)
    return Prepared(loaded, plan, base, (*loaded.findings, *plan.findings))


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
        IllegalMove: shards that have an owner would get another.
        RevisionConflict: another revision than the stated parent is current, or became so meanwhile.
        PolicyNotEffective: stored, but not acknowledged by all in time.
        StoreUnavailable: etcd does not answer.
    """
    _check_words(draft)
    prepared = await prepare(store, draft)
    base = prepared.base
    if draft.parent is not None and draft.parent != base.revision:
        raise conflict(draft.parent, base.revision)
    _check_possible(prepared)
    if validate_only:
        return Applied(0, "", prepared.findings, (), ())
    record, rollout = _records(draft, prepared)
    store_revision = await store.commit(base, record, rollout)
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


def _compiled(base: Base) -> Policy | None:
    try:
        return load_stored(base.current) if base.current else None
    except (ValueError, PolicyRejected) as error:
        raise StoreUnavailable("this release cannot read the current policy, so it can plan no step from it") from error


def _check_words(draft: Draft) -> None:
    for name, text, limit in (("author", draft.author, MAX_AUTHOR), ("message", draft.message, MAX_MESSAGE)):
        if len(text) > limit:
            raise InvalidInput(f"{name} may have {limit} characters", field_name=name)


def _check_possible(prepared: Prepared) -> None:
    plan = prepared.plan
    if not plan.is_possible:
        first = next(finding for finding in plan.findings if finding.severity is Severity.ERROR)
        raise PolicyRejected(f"the policy cannot follow the current one: {first.message}", findings=prepared.findings)
    if plan.moved:
        move = plan.moved[0]
        raise IllegalMove(
            f"the policy would move {len(plan.moved)} shards (the first is {move.region_code}/{move.shard}, from "
            f"{move.from_idc} to {move.to_idc}); this release cannot move shards, so nothing was stored"
        )


def _records(draft: Draft, prepared: Prepared) -> tuple[PolicyRevision, RolloutRecord | None]:
    revision = prepared.base.revision + 1
    now = datetime.now(UTC).isoformat()
    total = len(prepared.plan.assigned)
    rollout = None
    if total:
        note = f"{total} shards are waiting for their first owner"
        rollout = RolloutRecord(
            rollout=f"r{revision:08d}",
            policy_revision=revision,
            state="running",
            create_time=now,
            shards_total=total,
            note=note,
            traceparent=draft.traceparent,
        )
    record = PolicyRevision(
        revision=revision,
        parent=prepared.base.revision,
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
