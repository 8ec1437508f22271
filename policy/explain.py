"""Tells how a decision comes about, step by step, for a person who asks why (law L7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from policy.access import NO_JURISDICTION, AccessQuestion
from policy.wording import join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policy.compile import Policy
    from policy.model import AccessDecision, Operation


class Step(NamedTuple):
    """One consideration."""

    kind: str
    """residency | asker | rule | verdict"""
    text: str
    rule: str = ""
    """The rule that the step is about."""
    decides: bool = False
    """Whether this step settles it for its asker."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The considerations in their order, and the decision that they lead to."""

    steps: tuple[Step, ...]
    decision: AccessDecision


def explain(  # noqa: PLR0917 - the words of `Policy.decide`, in its order
    policy: Policy, dataset: str, region_code: str, askers: tuple[str, ...], operation: Operation, purpose: str
) -> Explanation:
    """Explains what `Policy.decide` answers to the same question.

    Raises:
        UnknownRegion, UnknownDataset: the policy does not have it.
    """
    decision = policy.decide(dataset, region_code, askers, operation, purpose)
    residency = policy.residency(region_code)
    spread = ", ".join(f"{idc} {weight}" for idc, weight in residency.weights.items())
    stored = f"{region_code} may be stored in {join(residency.jurisdictions)}; shares: {spread}"
    steps = [Step("residency", f"residency rule {residency.rule}: {stored}", residency.rule)]
    for idc in askers:
        question = AccessQuestion(dataset, region_code, policy.idcs.get(idc, NO_JURISDICTION), operation, purpose)
        steps += _steps_of(policy, idc, question)
    if not askers:
        steps.append(Step("asker", "nobody is named as asking, so it is denied", decides=True))
    steps.append(Step("verdict", _verdict(decision), decision.rule))
    return Explanation(tuple(steps), decision)


def _steps_of(policy: Policy, idc: str, question: AccessQuestion) -> Iterator[Step]:
    residency, jurisdiction = policy.regions[question.region_code], question.jurisdiction
    if jurisdiction == NO_JURISDICTION:
        yield Step("asker", "the policy does not know the asking IDC, so it is denied", decides=True)
        return
    if jurisdiction in residency.jurisdictions:
        text = f"{idc} asks from {jurisdiction}, where the rows may be stored: no border is crossed"
        yield Step("asker", text, residency.rule, decides=True)
        return
    yield Step("asker", f"{idc} asks from {jurisdiction}: a border is crossed, so an access rule must allow it")
    for rule in policy.rules:
        reason = question.misfit(rule)
        if reason:
            yield Step("rule", f"access rule {rule.name} {reason}", rule.name)
            continue
        withheld = rule.withheld.get(question.dataset)
        text = f"access rule {rule.name} fits and decides" + (f"; it withholds {join(withheld)}" if withheld else "")
        yield Step("rule", text, rule.name, decides=True)
        return
    yield Step("rule", "no access rule fits, so it is denied", decides=True)


def _verdict(decision: AccessDecision) -> str:
    outcome = "allowed" if decision.allowed else "denied"
    without = f", without {join(decision.withheld)}" if decision.withheld else ""
    return f"{outcome} by rule {decision.rule}, policy revision {decision.policy_revision}{without}"
