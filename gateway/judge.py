"""What is to be done with one operation: decided here, in pure code, from values that do not change.

The laws as they stand in this module:
- L8: what the policy does not know or does not allow is denied; a shard without an owner is held, never guessed.
- L6: without a fresh table, only what stays inside this IDC's own jurisdiction is done: asked for there, and owned
  there. Every other verdict that lets something be done is guarded: the engine asks `still_stands` again right before
  a row leaves or a write begins, so that a process that was paused in between does not act by an old law.
- One hop: what a peer has forwarded is served here or refused, never forwarded again.
- Transit: where the residency rule forbids it, a row does not even pass through another jurisdiction.

A shard on the move is held wherever the operation is, here or at the ingress, while its owner cannot serve it: a hop
would only make it wait elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.operations import Action
from policy.errors import AccessDenied, RegiongateError, ShardUnavailable, TableTooOld
from policy.model import Operation, Phase
from policy.move import READABLE, WRITABLE
from policy.sharding import shard_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.operations import CallContext, RowOperation
    from policy.compile import Policy
    from policy.model import AccessDecision, Route
    from policy.table import RoutingTable

OPERATIONS: Final[Mapping[Action, Operation]] = {
    Action.GET: Operation.READ,
    Action.PUT: Operation.WRITE,
    Action.DELETE: Operation.WRITE,
}
"""What access rules judge, for each action."""


@dataclass(slots=True)
class Asking:
    """Who asks: every one of the askers must be allowed."""

    idc: str
    """The IDC of this gateway."""
    askers: tuple[str, ...]
    """IDCs: where the call entered, and the home that its client states."""
    purpose: str = ""
    has_hopped: bool = False
    """Whether a peer has forwarded it."""

    def is_home(self, policy: Policy, *owners: str) -> bool:
        """Whether it all stays inside this IDC's own jurisdiction: who asks, and who owns."""
        if self.askers == (self.idc,) == owners:
            return True
        own = policy.idcs.get(self.idc)
        return own is not None and all(policy.idcs.get(idc) == own for idc in (*self.askers, *owners))


def asking_side(idc: str, context: CallContext) -> Asking:
    """Who asks in a call that this IDC's gateway has received."""
    entered = context.ingress_idc or idc
    origin = context.origin_idc
    askers = (entered, origin) if origin and origin != entered else (entered,)
    return Asking(idc, askers, context.purpose, bool(context.ingress_idc))


@dataclass(slots=True)
class Serve:
    """Perform it on this IDC's database."""

    route: Route
    decision: AccessDecision
    is_guarded: bool
    """Whether it must still stand when the row leaves or the write begins (law L6)."""


@dataclass(slots=True)
class Forward:
    """Hand it to a gateway of the owner's IDC."""

    route: Route
    decision: AccessDecision
    is_guarded: bool
    """Whether it must still stand when the answer leaves (law L6)."""


@dataclass(slots=True)
class Redirect:
    """Name the owner to the caller."""

    route: Route
    decision: AccessDecision


@dataclass(slots=True)
class Hold:
    """Wait for a newer table: the shard has no owner yet, or is on its way to another one."""

    reason: str
    decision: AccessDecision | None


@dataclass(slots=True)
class Deny:
    """Refuse it."""

    error: RegiongateError
    decision: AccessDecision | None = None


Verdict = Serve | Forward | Redirect | Hold | Deny

UNASSIGNED: Final = "unassigned"
OPENING: Final = "opening"
DRAINING: Final = "draining"
CLOSING: Final = "closing"

HOLDS: Final[Mapping[Operation, Mapping[Phase, str]]] = {
    kind: {
        phase: reason
        for phase, reason in ((Phase.OPENING, OPENING), (Phase.DRAINING, DRAINING), (Phase.CLOSING, CLOSING))
        if phase not in served
    }
    for kind, served in ((Operation.READ, READABLE), (Operation.WRITE, WRITABLE))
}
"""Why an operation of a kind must wait for a newer table, by the phases in which the owner's fence lets none pass."""


def judge(table: RoutingTable, operation: RowOperation, asking: Asking, *, is_fresh: bool) -> Verdict:
    """The verdict on one operation by one table.

    Args:
        table: The newest table that this gateway has.
        operation: The operation, already checked against its dataset.
        asking: Who asks.
        is_fresh: Whether this gateway knows that no newer policy is effective.
    """
    policy = table.policy
    route: Route | None
    try:
        decision = _decide(policy, operation, asking)
        route = table.resolve(operation.region_code, operation.key)
    except ShardUnavailable:
        decision, route = _decide(policy, operation, asking), None
    except RegiongateError as error:
        # By an old table even "unknown" is no answer.
        return Deny(error) if is_fresh else Deny(_too_old())
    is_guarded = route is None or not asking.is_home(policy, route.idc)
    if is_guarded and not is_fresh:
        return Deny(_too_old(), decision)
    if not decision.allowed:
        return Deny(access_denied(decision), decision)
    if route is None:
        return Hold(UNASSIGNED, decision)
    reason = HOLDS[OPERATIONS[operation.action]].get(route.phase, "")
    return _place(policy, route, decision, asking, is_guarded=is_guarded, hold_reason=reason)


def judge_all(
    table: RoutingTable, operations: Sequence[RowOperation], indices: Sequence[int], asking: Asking, *, is_fresh: bool
) -> list[tuple[Verdict, list[int]]]:
    """The verdicts on operations of one call, each with the indices of the operations that it is on.

    A verdict rests on an operation's dataset, RegionCode, action and shard: those that agree in these share one.
    """
    if len(indices) == 1:
        return [(judge(table, operations[indices[0]], asking, is_fresh=is_fresh), [indices[0]])]
    verdicts: list[tuple[Verdict, list[int]]] = []
    regions = table.policy.regions
    alike: dict[tuple[str, str, Action], list[list[int] | None]] = {}
    for index in indices:
        operation = operations[index]
        question = operation.dataset.name, operation.region_code, operation.action
        by_shard = alike.get(question)
        if by_shard is None:
            residency = regions.get(operation.region_code)
            by_shard = alike[question] = [None] * (residency.shards if residency else 1)
        try:
            shard = shard_of(operation.key, len(by_shard))
        except RegiongateError:
            # It is in no shard; what is wrong with it, `judge` says.
            verdicts.append((judge(table, operation, asking, is_fresh=is_fresh), [index]))
            continue
        group = by_shard[shard]
        if group is not None:
            group.append(index)
        else:
            group = by_shard[shard] = [index]
            verdicts.append((judge(table, operation, asking, is_fresh=is_fresh), group))
    return verdicts


def _place(
    policy: Policy, route: Route, decision: AccessDecision, asking: Asking, *, is_guarded: bool, hold_reason: str
) -> Verdict:
    """Where an operation that is allowed is performed."""
    if _is_sent_on(policy, route, asking):
        return Redirect(route, decision)
    if hold_reason:
        return Hold(hold_reason, decision)
    return Serve(route, decision, is_guarded) if route.idc == asking.idc else Forward(route, decision, is_guarded)


def _is_sent_on(policy: Policy, route: Route, asking: Asking) -> bool:
    """Whether the caller must ask the owner itself: one hop at most, and none where the row may not pass."""
    if route.idc != asking.idc:
        return asking.has_hopped or not _may_pass(policy, route.region_code, asking.idc)
    return asking.has_hopped and not _may_pass(policy, route.region_code, asking.askers[0])


def still_stands(
    decision: AccessDecision,
    judged_by: Policy,
    newest: RoutingTable | None,
    operation: RowOperation,
    asking: Asking,
    *,
    is_fresh: bool,
) -> AccessDecision | Deny:
    """What the newest table says of a guarded verdict right before it takes effect (law L6).

    Returns:
        The decision that holds now, which may withhold more; or the denial that takes its place.
    """
    if not is_fresh or newest is None:
        return Deny(_too_old(), decision)
    if newest.policy is judged_by:
        return decision
    try:
        now = _decide(newest.policy, operation, asking)
    except RegiongateError as error:
        return Deny(error)
    return now if now.allowed else Deny(access_denied(now), now)


def access_denied(decision: AccessDecision) -> AccessDenied:
    """The error that explains a denial (law L7)."""
    return AccessDenied(decision.reason, rule=decision.rule, policy_revision=decision.policy_revision)


def _decide(policy: Policy, operation: RowOperation, asking: Asking) -> AccessDecision:
    return policy.decide(
        operation.dataset.name, operation.region_code, asking.askers, OPERATIONS[operation.action], asking.purpose
    )


def _may_pass(policy: Policy, region_code: str, idc: str) -> bool:
    """Whether a row of the RegionCode may pass through a gateway of the IDC."""
    residency = policy.regions[region_code]
    return residency.allows_transit or policy.idcs.get(idc) in residency.jurisdictions


def _too_old() -> TableTooOld:
    return TableTooOld("this gateway has lost touch with the policy store and serves its own jurisdiction only")
