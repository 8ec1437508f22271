"""The parts that the operations of one call fall into: what this IDC's database does, and what each other IDC does.

A branch holds the operations that travel together, the future that ends them, and `finish`, which turns the results
into outcomes and returns the operations that must be held. Nothing in here waits.

Law L6: right before the outcome of a guarded read is made, the newest table is asked again. A guarded write is asked
about right before it begins (the coalescer's guard); what it has left behind is reported as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from gateway import metrics
from gateway.coalescer import Superseded
from gateway.judge import Deny, Forward, Serve, still_stands
from gateway.operations import Action, OperationOutcome
from gateway.status import error_from_message
from gateway.values import read_time
from policy.errors import NotOwnedHere, RegiongateError, RowNotFound, VersionConflict
from policy.model import AccessDecision, Phase
from rowstore.model import (
    Arriving,
    FenceMiss,
    FenceMode,
    Missing,
    ReadOutcome,
    StoredRow,
    VersionMismatch,
    WriteOutcome,
    Written,
)
from runtime.telemetry.tracing import set_failed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from gateway.coalescer import Settled
    from gateway.hold import FollowerLike
    from gateway.judge import Asking
    from gateway.operations import CallContext, RowOperation
    from policy.compile import Policy
    from policy.model import Route
    from regiongate.v1.row_service_pb2 import OperationResult
    from regiongate.v1.types_pb2 import Decision
    from runtime.telemetry.tracing import Span

FENCE: Final = "fence"
PEER: Final = "peer"
SUPERSEDED: Final = "superseded"


class Call:
    """The operations of one message, and what has become of them."""

    __slots__ = ("arriving", "asking", "context", "hold_until", "operations", "outcomes")

    def __init__(self, operations: Sequence[RowOperation], context: CallContext, asking: Asking) -> None:
        self.operations = operations
        self.context = context
        self.asking = asking
        self.outcomes: list[OperationOutcome | None] = [None] * len(operations)
        self.hold_until: float | None = None
        """Until when it may be held, on the loop's clock; None while it never was."""
        self.arriving: set[int] = set()
        """Operations that were held because a row is on its way to them."""


V = TypeVar("V", Serve, Forward)


class Branch(Generic[V]):
    """Operations of one call that were judged alike by one table."""

    __slots__ = ("call", "follower", "indices", "parts", "policy", "spans")

    def __init__(self, call: Call, follower: FollowerLike, policy: Policy) -> None:
        self.call = call
        self.follower = follower
        self.policy = policy
        """What they were judged by."""
        self.parts: list[tuple[V, list[int]]] = []
        """Each verdict, and the operations that it is on: of one action, and one shard."""
        self.indices: list[int] = []
        """Of all operations, in the order of the parts."""
        self.spans: list[Span] = []
        """Of the sampled ones."""

    def add(self, verdict: V, indices: list[int]) -> None:
        """Adds operations that were judged alike."""
        self.parts.append((verdict, indices))
        self.indices += indices

    def fail(self, error: RegiongateError) -> list[int]:
        """Ends all operations with one error; none is held."""
        for verdict, indices in self.parts:
            for index in indices:
                self.put(index, OperationOutcome(error=error, decision=verdict.decision, owner_idc=verdict.route.idc))
        for span in self.spans:
            set_failed(span, error.reason)
        self.end_spans()
        return []

    def put(self, index: int, outcome: OperationOutcome) -> None:
        """Sets the outcome of one operation."""
        self.call.outcomes[index] = outcome

    def hold(self, reason: str) -> list[int]:
        """Sends all operations to the holding area."""
        metrics.HOLDS.labels(reason).inc(len(self.indices))
        self.end_spans()
        return self.indices

    def end_spans(self) -> None:
        """Ends the spans of the sampled operations."""
        for span in self.spans:
            span.end()

    def recheck(self, verdict: V, indices: list[int]) -> AccessDecision | Deny:
        """What the newest law says of a part before its answers leave (law L6)."""
        first = self.call.operations[indices[0]]
        if not verdict.is_guarded or first.action is not Action.GET:
            return verdict.decision
        table, is_fresh = self.follower.table, self.follower.is_fresh
        return still_stands(verdict.decision, self.policy, table, first, self.call.asking, is_fresh=is_fresh)


class ServeBranch(Branch[Serve]):
    """Reads, or writes, of one dataset on this IDC's database.

    What a peer has forwarded does not wait here for a shard that this IDC's database has let go: the ingress may know
    the new owner already.
    """

    __slots__ = ("future",)

    future: asyncio.Future[Settled[ReadOutcome]] | asyncio.Future[Settled[WriteOutcome]]

    def finish(self) -> list[int]:
        """Makes the outcomes; returns the operations that must be held."""
        result = self.future.result()
        if isinstance(result, RegiongateError):
            return self.fail(result)
        if isinstance(result, Superseded):
            metrics.SUPERSEDED.inc(len(self.indices))
            return self.hold(SUPERSEDED)
        held: list[int] = []
        outcomes = self.call.outcomes
        end = 0
        for verdict, indices in self.parts:
            start, end = end, end + len(indices)
            decision, owner_idc = self.recheck(verdict, indices), verdict.route.idc
            if isinstance(decision, Deny):
                for index in indices:
                    outcomes[index] = OperationOutcome(error=decision.error, decision=decision.decision)
                continue
            for index, found in zip(indices, result[start:end], strict=True):
                if type(found) is Written:
                    outcomes[index] = OperationOutcome(None, found, None, decision, owner_idc)
                elif (outcome := self._outcome(index, decision, found, verdict.route)) is not None:
                    outcome.owner_idc = owner_idc
                    outcomes[index] = outcome
                else:
                    held.append(index)
        if held:
            metrics.HOLDS.labels(FENCE).inc(len(held))
        self.end_spans()
        return held

    def _outcome(
        self, index: int, decision: AccessDecision, found: ReadOutcome | WriteOutcome, route: Route
    ) -> OperationOutcome | None:
        """The outcome of one operation; None when the database's fence said no, and it is worth waiting here."""
        if isinstance(found, StoredRow):
            row = visible(found, self.call.operations[index].columns, decision.withheld)
            return OperationOutcome(row=row, decision=decision)
        if isinstance(found, Missing):
            return OperationOutcome(error=RowNotFound("the row does not exist"), decision=decision)
        if isinstance(found, VersionMismatch):
            conflict = VersionConflict("the row does not have the demanded version", current=found.current)
            return OperationOutcome(error=conflict, decision=decision)
        if isinstance(found, Arriving):
            self.call.arriving.add(index)
            return None
        if self.call.asking.has_hopped and isinstance(found, FenceMiss) and _has_left(found, route):
            return OperationOutcome(error=NotOwnedHere("the shard has left this IDC"), decision=decision)
        return None


class ForwardBranch(Branch[Forward]):
    """Operations that a gateway of one other IDC performs."""

    __slots__ = ("future",)

    future: asyncio.Future[list[OperationResult] | RegiongateError]

    def finish(self) -> list[int]:
        """Makes the outcomes; returns the operations that must be held."""
        results = self.future.result()
        if isinstance(results, RegiongateError):
            return self.fail(results)
        held: list[int] = []
        end = 0
        for verdict, indices in self.parts:
            start, end = end, end + len(indices)
            now = self.recheck(verdict, indices)
            for index, result in zip(indices, results[start:end], strict=True):
                outcome = _forwarded(verdict.decision, result)
                outcome.owner_idc = outcome.owner_idc or verdict.route.idc
                if isinstance(outcome.error, NotOwnedHere):
                    held.append(index)
                elif isinstance(now, Deny):
                    self.put(index, OperationOutcome(error=now.error, decision=now.decision))
                else:
                    # The owner has dropped what its law withholds; a law that only this gateway knows yet counts, too.
                    for name in now.withheld:
                        if name in result.row.columns:
                            del result.row.columns[name]
                    self.put(index, outcome)
        if held:
            metrics.HOLDS.labels(PEER).inc(len(held))
        self.end_spans()
        return held


def _has_left(found: FenceMiss, route: Route) -> bool:
    """Whether the shard is not here any more at this epoch; one that drains, or is called back, may serve again."""
    return found.mode is not FenceMode.DRAINING and route.phase is not Phase.ABORTING


def visible(row: StoredRow, columns: frozenset[str] | None, withheld: frozenset[str]) -> StoredRow:
    """The row with what was asked for and may be seen."""
    if columns is None and not withheld:
        return row
    values = {
        name: value
        for name, value in row.values.items()
        if name not in withheld and (columns is None or name in columns)
    }
    return StoredRow(row.region_code, row.key, row.version, row.update_time, values)


def _forwarded(own: AccessDecision, result: OperationResult) -> OperationOutcome:
    """What the owner's gateway has answered."""
    decision, owner_idc = (own, "")
    if result.HasField("decision"):
        decision, owner_idc = _owners_decision(result.decision, own)
    kind = result.WhichOneof("outcome")
    if kind == "row":
        return OperationOutcome(row=result.row, decision=decision, owner_idc=owner_idc)
    if kind == "receipt":
        written = Written(result.receipt.version, read_time(result.receipt.update_time))
        return OperationOutcome(receipt=written, decision=decision, owner_idc=owner_idc)
    error = error_from_message(result.error) if kind == "error" else RegiongateError("a peer gave no outcome")
    return OperationOutcome(error=error, decision=decision, owner_idc=owner_idc)


_MAX_KNOWN: Final = 10_000
_known_decisions: dict[tuple[bytes, bool], tuple[AccessDecision, str]] = {}


def _owners_decision(message: Decision, own: AccessDecision) -> tuple[AccessDecision, str]:
    """The owner's decision and IDC; equal messages give the same object."""
    key = (message.SerializeToString(), own.crosses_border)
    known = _known_decisions.get(key)
    if known is None:
        decision = AccessDecision(
            True,
            message.rule,
            own.reason,
            message.policy_revision,
            message.asking_jurisdiction,
            own.crosses_border,
            frozenset(message.withheld),
        )
        known = (decision, message.owner_idc)
        if len(_known_decisions) >= _MAX_KNOWN:
            _known_decisions.clear()
        _known_decisions[key] = known
    return known
