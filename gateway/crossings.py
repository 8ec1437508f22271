"""Border crossings, permitted and refused: counted where calls enter, and recorded in the audit trail at intervals.

A counter is named by words of the policy only (rule, revision, jurisdiction, RegionCode, operation, purpose), so no key
and no value can get into the trail (law L1); a purpose that no rule names is `other`, so callers cannot make counters.

Counts that cannot be recorded are kept and recorded later. A process that dies takes those of one interval with it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from prometheus_client import Counter

from gateway.judge import OPERATIONS
from policy.audit.entry import Fact, time_text
from policy.errors import AccessDenied, NotOwnedHere, RegiongateError, TableTooOld
from runtime.etcd import EtcdError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from gateway.operations import Action, OperationOutcome, RowOperation
    from policy.audit.chain import AuditChain
    from policy.compile import Policy
    from policy.model import AccessDecision, Operation

log = structlog.get_logger(__name__)

MAX_COUNTERS: Final = 10_000
ENTRY_COUNTERS: Final = 1_000
"""Counters in one entry; more of them make several entries."""
OTHER_PURPOSE: Final = "other"
PERMITTED: Final = "permitted"
REFUSED: Final = "refused"
LAW_UNKNOWN: Final = "law unknown"
"""Refused, because the gateway could not know the current law."""
_LAST_FLUSH: Final = 5.0
"""Seconds that a gateway which stops has to record what it has counted."""

FLUSH_FAILURES: Final = Counter(
    "regiongate_audit_flush_failures", "Attempts to record border crossings in the audit trail that failed."
)
OVERFLOW: Final = Counter("regiongate_audit_overflow", "Border crossings that were recorded without their details.")


class Crossing(NamedTuple):
    """What crossings are counted by."""

    rule: str
    policy_revision: int
    asking_jurisdiction: str
    region_code: str
    operation: str
    purpose: str
    outcome: str
    withheld: bool


class Asked(NamedTuple):
    """What an operation asks for, in words of the policy."""

    region_code: str
    operation: Operation
    purpose: str
    """See `named_purpose`."""


def named_purpose(policy: Policy | None, purpose: str) -> str:
    """The purpose, if a rule names it, or there is none."""
    return purpose if not purpose or (policy is not None and purpose in policy.purposes) else OTHER_PURPOSE


class Crossings:
    """The counters of one gateway."""

    def __init__(self, max_counters: int = MAX_COUNTERS) -> None:
        self._max = max_counters
        self._counts: dict[Crossing, int] = {}
        self._overflow = 0

    def count_outcomes(
        self, policy: Policy | None, purpose: str, judged: Iterable[tuple[RowOperation, OperationOutcome]]
    ) -> None:
        """Counts those operations that cross a border; all others cost a look at their decision."""
        alike: dict[tuple[int, str, Action], int] = {}
        by_id: dict[int, AccessDecision] = {}  # hashing a decision would cost more than all the rest
        for operation, outcome in judged:
            decision = outcome.decision
            if decision is None or not decision.crosses_border:
                continue
            if outcome.error is not None:
                asked = Asked(operation.region_code, OPERATIONS[operation.action], named_purpose(policy, purpose))
                self.count(decision, asked, outcome.error)
                continue
            group = (id(decision), operation.region_code, operation.action)
            alike[group] = alike.get(group, 0) + 1
            by_id[group[0]] = decision
        for (number, region_code, action), operations in alike.items():
            asked = Asked(region_code, OPERATIONS[action], named_purpose(policy, purpose))
            self.count(by_id[number], asked, None, operations)

    def count(self, decision: AccessDecision, asked: Asked, error: RegiongateError | None, operations: int = 1) -> None:
        """Counts operations by how they ended.

        What is sent on to another gateway is counted there. A denial of the owner, whose law may be newer, counts as
        that. Any other error is not about the law: the crossing was permitted.
        """
        rule, revision, outcome = decision.rule, decision.policy_revision, PERMITTED
        if error is not None:
            if isinstance(error, NotOwnedHere):
                return
            if isinstance(error, AccessDenied):
                outcome = REFUSED
                rule, revision = error.rule or rule, error.policy_revision or revision
            elif isinstance(error, TableTooOld):
                outcome = LAW_UNKNOWN
        withheld = bool(decision.withheld) and outcome is PERMITTED
        crossing = Crossing(rule, revision, decision.asking_jurisdiction, *asked, outcome, withheld)
        number = self._counts.get(crossing)
        if number is not None:
            self._counts[crossing] = number + operations
        elif len(self._counts) < self._max:
            self._counts[crossing] = operations
        else:
            self._overflow += operations
            OVERFLOW.inc(operations)

    def take(self) -> tuple[dict[Crossing, int], int]:
        """All counts, and the number of crossings that found no free counter; starts from zero."""
        taken = self._counts, self._overflow
        self._counts, self._overflow = {}, 0
        return taken


class CrossingsRecorder:
    """Records the counters of one gateway."""

    def __init__(self, crossings: Crossings, chain: AuditChain, *, gateway: str, idc: str, every: timedelta) -> None:
        self._crossings = crossings
        self._chain = chain
        self._gateway = gateway
        self._idc = idc
        self._every = every.total_seconds()
        self._since = time_text(datetime.now(UTC))
        self._pending: list[Fact] = []
        """Taken from the counters, and not known to be recorded."""

    async def run(self) -> None:
        """Records at intervals, until it is cancelled."""
        while True:
            await asyncio.sleep(self._every)
            await self.flush()

    async def stop(self) -> None:
        """Records what is left, unless the policy store does not answer soon."""
        try:
            async with asyncio.timeout(_LAST_FLUSH):
                await self.flush()
        except TimeoutError:
            FLUSH_FAILURES.inc()
            log.warning("border crossings not recorded", reason="the policy store does not answer")

    async def flush(self) -> bool:
        """Records what was counted, first what an earlier flush has left; returns whether nothing is left.

        What is left keeps its own entry: whether it was recorded may not be known, and the same fact twice is not.
        """
        try:
            await self._append_pending()
            self._pending = self._take()
            await self._append_pending()
        except EtcdError as error:
            FLUSH_FAILURES.inc()
            log.warning("border crossings not recorded yet", reason=type(error).__name__)
            return False
        return True

    async def _append_pending(self) -> None:
        while self._pending:
            await self._chain.append(self._pending[0])
            del self._pending[0]

    def _take(self) -> list[Fact]:
        counts, overflow = self._crossings.take()
        since, self._since = self._since, time_text(datetime.now(UTC))
        if not counts:
            return []
        rows = [{**crossing._asdict(), "count": counts[crossing]} for crossing in sorted(counts)]
        starts = range(0, len(rows), ENTRY_COUNTERS)
        return [
            self._fact(since, rows[start : start + ENTRY_COUNTERS], overflow if start == 0 else 0) for start in starts
        ]

    def _fact(self, since: str, rows: list[dict[str, Any]], overflow: int) -> Fact:
        content: dict[str, Any] = {
            "gateway": self._gateway,
            "idc": self._idc,
            "from": since,
            "to": self._since,
            "counts": rows,
            "overflow": overflow,
        }
        return Fact("crossings", content)
