"""Decisions as messages, made once for each decision and owner: every answer carries one (law L7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from regiongate.v1 import types_pb2

if TYPE_CHECKING:
    from policy.model import AccessDecision

_MAX_KEPT: Final = 10_000


class DecisionMessages:
    """A bounded memory of messages, by identity: a policy hands out the same object for the same question."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], tuple[AccessDecision, types_pb2.Decision]] = {}

    def message(self, decision: AccessDecision | None, owner_idc: str) -> types_pb2.Decision | None:
        """The message for a decision; None when nothing was decided. It is shared: do not change it."""
        if decision is None:
            return None
        known = self._kept.get((id(decision), owner_idc))
        if known is not None:
            return known[1]
        message = to_message(decision, owner_idc)
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        # The decision is kept, too: while it lives no other object can have its id.
        self._kept[id(decision), owner_idc] = (decision, message)
        return message


def to_message(decision: AccessDecision, owner_idc: str) -> types_pb2.Decision:
    """The decision as it travels."""
    return types_pb2.Decision(
        rule=decision.rule,
        policy_revision=decision.policy_revision,
        asking_jurisdiction=decision.asking_jurisdiction,
        owner_idc=owner_idc,
        withheld=sorted(decision.withheld),
    )
