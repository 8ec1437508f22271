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
    from gateway.operations import RowOperation
    from policy.table import RoutingTable


class Plan:
    """The branches of one round, and what must be held."""

    __slots__ = ("_call", "_follower", "_policy", "forwards", "held", "reads", "writes")

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

    def add(self, index: int, operation: RowOperation, verdict: Verdict) -> bool:
        """Sorts an operation in; False when nothing is to be done for it."""
        if type(verdict) is Serve:
            branches = self.reads if operation.action is Action.GET else self.writes
            name = operation.dataset.name
            serve = branches.get(name)
            if serve is None:
                serve = branches[name] = ServeBranch(self._call, self._follower, self._policy)
            serve.add(index, verdict)
        elif type(verdict) is Forward:
            key = (verdict.route.idc, operation.action is Action.GET or bool(operation.request_id))
            forward = self.forwards.get(key)
            if forward is None:
                forward = self.forwards[key] = ForwardBranch(self._call, self._follower, self._policy)
            forward.add(index, verdict)
        elif type(verdict) is Hold:
            metrics.HELD.inc()
            metrics.HOLDS.labels(verdict.reason).inc()
            self.held.append(index)
        else:
            return False
        return True

    def count(self) -> None:
        """Counts what is done, once for all operations."""
        served = sum(len(branch.indices) for branch in self.reads.values())
        served += sum(len(branch.indices) for branch in self.writes.values())
        if served:
            metrics.SERVED.inc(served)
        if self.forwards:
            metrics.FORWARDED.inc(sum(len(branch.indices) for branch in self.forwards.values()))


def apart(branch: ServeBranch, max_rows: int) -> list[ServeBranch]:
    """The branch itself; when it has a row twice or too many rows, a branch for each request_id and each bare write."""
    if len(branch.indices) == 1:
        return [branch]
    operations = branch.call.operations
    rows = {(operations[index].region_code, operations[index].key) for index in branch.indices}
    if len(rows) == len(branch.indices) <= max_rows:
        return [branch]
    parts: dict[object, ServeBranch] = {}
    seen: set[tuple[object, str, str | int]] = set()
    for index, verdict in zip(branch.indices, branch.verdicts, strict=True):
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
        part.add(index, verdict)
    return list(parts.values())
