"""One round of one call: its operations, judged by one table and sorted into branches.

Invariant: writes that share a request_id and go to one place are in one branch, and no branch has a row twice, so that
each branch of writes can be one group of one statement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import metrics
from gateway.branches import Call, ForwardBranch, ServeBranch
from gateway.judge import Forward, Hold, Serve
from gateway.operations import Action, OperationOutcome
from policy.errors import InvalidValue

if TYPE_CHECKING:
    from gateway.hold import FollowerLike
    from gateway.judge import Verdict
    from policy.table import RoutingTable


class Plan:
    """The branches of one round, and what must be held."""

    __slots__ = ("_call", "_follower", "_forwarded", "_policy", "_served", "forwards", "held", "reads", "writes")

    def __init__(self, call: Call, follower: FollowerLike, table: RoutingTable) -> None:
        self._call = call
        self._follower = follower
        self._policy = table.policy
        self.reads: dict[str, ServeBranch] = {}
        """By dataset."""
        self.writes: dict[str, ServeBranch] = {}
        """By dataset."""
        self.forwards: dict[tuple[str, bool], ForwardBranch] = {}
        """By the owner's IDC and whether sending again would do no harm: a bare write must not keep reads from it."""
        self.held: list[int] = []
        self._served = 0
        self._forwarded = 0

    def add(self, verdict: Verdict, indices: list[int]) -> bool:
        """Sorts operations in that were judged alike; False when nothing is to be done for them."""
        operations = self._call.operations
        first = operations[indices[0]]
        if type(verdict) is Serve:
            branches = self.reads if first.action is Action.GET else self.writes
            name = first.dataset.name
            serve = branches.get(name)
            if serve is None:
                serve = branches[name] = ServeBranch(self._call, self._follower, self._policy)
            serve.add(verdict, indices)
            self._served += len(indices)
        elif type(verdict) is Forward:
            is_read = first.action is Action.GET
            harmless = [index for index in indices if is_read or operations[index].request_id]
            self._forward(verdict, harmless, is_harmless=True)
            if len(harmless) < len(indices):
                bare = [index for index in indices if not operations[index].request_id]
                self._forward(verdict, bare, is_harmless=False)
        elif type(verdict) is Hold:
            metrics.HELD.inc(len(indices))
            metrics.HOLDS.labels(verdict.reason).inc(len(indices))
            self.held += indices
        else:
            return False
        return True

    def _forward(self, verdict: Forward, indices: list[int], *, is_harmless: bool) -> None:
        if not indices:
            return
        key = (verdict.route.idc, is_harmless)
        forward = self.forwards.get(key)
        if forward is None:
            forward = self.forwards[key] = ForwardBranch(self._call, self._follower, self._policy)
        forward.add(verdict, indices)
        self._forwarded += len(indices)

    def count(self) -> None:
        """Counts what is done, once for all operations."""
        if self._served:
            metrics.SERVED.inc(self._served)
        if self._forwarded:
            metrics.FORWARDED.inc(self._forwarded)


def apart(branch: ServeBranch, max_rows: int) -> list[ServeBranch]:
    """The branch itself; when it has a row twice or too many rows, a branch for each request_id and each bare write."""
    if len(branch.indices) == 1:
        return [branch]
    operations = branch.call.operations
    named = [operations[index] for index in branch.indices]
    rows = {(operation.region_code, operation.key) for operation in named}
    if len(rows) == len(branch.indices) <= max_rows:
        return [branch]
    parts: dict[object, ServeBranch] = {}
    seen: set[tuple[object, str, str | int]] = set()
    for verdict, index in ((verdict, index) for verdict, indices in branch.parts for index in indices):
        # Bare writes stand alone: a number cannot be a request_id.
        key: object = operations[index].request_id or index
        row = (key, operations[index].region_code, operations[index].key)
        if row in seen:
            twice = InvalidValue("the request_id stands for two writes of one row", field_name="request_id")
            branch.put(index, OperationOutcome(error=twice, decision=verdict.decision))
            continue
        seen.add(row)
        part = parts.get(key)
        if part is None:
            part = parts[key] = ServeBranch(branch.call, branch.follower, branch.policy)
        part.add(verdict, [index])
    return list(parts.values())
