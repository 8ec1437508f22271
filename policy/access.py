"""How one access decision is made. The law of this module: across a border everything is denied until a rule allows it.

An asker whose jurisdiction may hold the row anyway crosses no border, and is allowed. For any other the access rules
are tried in the document's order, and the first that fits decides; none fits: denied. When an operation has several
askers (the IDC where it entered, the home that its client states), each of them must be allowed, and what is withheld
from one is withheld.

`AccessQuestion.misfit` is the only place that knows when a rule fits, so that what `explain` tells is what happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from policy.document import ANY_PURPOSE
from policy.model import AccessDecision, Operation
from policy.wording import join

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policy.model import Dataset, Residency

NO_JURISDICTION = ""
"""Jurisdiction of an asker that the policy does not know: no rule can name it, so nothing is allowed to it."""


@dataclass(frozen=True, slots=True)
class CompiledAccessRule:
    """An access rule with its groups expanded."""

    name: str
    regions: frozenset[str]
    askers: frozenset[str]
    """Jurisdictions."""
    operations: frozenset[Operation]
    purposes: frozenset[str]
    datasets: frozenset[str] | None
    """None: all."""
    withheld: Mapping[str, frozenset[str]]
    """Dataset -> its columns that do not travel; datasets that lose none are left out."""

    def has_purpose(self, purpose: str) -> bool:
        """Whether the rule is for this purpose."""
        return ANY_PURPOSE in self.purposes or purpose in self.purposes


class AccessQuestion(NamedTuple):
    """One asker, one RegionCode, one dataset: what the access rules judge."""

    dataset: str
    region_code: str
    jurisdiction: str
    operation: Operation
    purpose: str

    def misfit(self, rule: CompiledAccessRule) -> str:
        """Why the rule does not fit, as the end of a sentence; empty when it does."""
        if self.region_code not in rule.regions:
            return f"does not cover {self.region_code}"
        if self.jurisdiction not in rule.askers:
            return f"is for askers from {join(rule.askers)}"
        if self.operation not in rule.operations:
            return f"is for {join(rule.operations)} only"
        if not rule.has_purpose(self.purpose):
            return f"is for purpose {join(rule.purposes, 'or')} only"
        if rule.datasets is not None and self.dataset not in rule.datasets:
            return f"is for dataset {join(rule.datasets, 'or')} only"
        return ""


def first_fit(rules: Iterable[CompiledAccessRule], question: AccessQuestion) -> CompiledAccessRule | None:
    """The rule that decides; None: nothing allows it."""
    return next((rule for rule in rules if not question.misfit(rule)), None)


def judge(
    rules: Iterable[CompiledAccessRule],
    residency: Residency,
    dataset: Dataset,
    question: AccessQuestion,
    revision: int,
) -> AccessDecision:
    """The decision for one asker."""
    asker, region_code = question.jurisdiction, question.region_code
    if asker in residency.jurisdictions:
        home = f"{asker} is among the jurisdictions that may hold {region_code}"
        return AccessDecision(True, residency.rule, home, revision, asker, crosses_border=False)
    rule = first_fit(rules, question)
    if rule is None:
        who = f"askers from {asker}" if asker else "an asker whose IDC the policy does not know"
        denied = (
            f"no access rule lets {who} {question.operation} {dataset.name} of {region_code} for this purpose, "
            f"and residency rule {residency.rule} keeps it in {join(residency.jurisdictions)}"
        )
        return AccessDecision(False, residency.rule, denied, revision, asker, crosses_border=True)
    withheld = rule.withheld.get(dataset.name, frozenset[str]())
    allowed = f"access rule {rule.name} lets askers from {asker} {question.operation} {dataset.name} of {region_code}"
    return AccessDecision(True, rule.name, allowed, revision, asker, crosses_border=True, withheld=withheld)


def unite(decisions: Iterable[AccessDecision]) -> AccessDecision | None:
    """What holds when each of several askers must be allowed; None when there are none.

    The first denial stands for all. Otherwise the first decision that crosses a border does, with everything that any
    of them withholds.
    """
    all_of_them = tuple(decisions)
    if not all_of_them:
        return None
    for decision in all_of_them:
        if not decision.allowed:
            return decision
    speaker = next((decision for decision in all_of_them if decision.crosses_border), all_of_them[0])
    withheld = frozenset[str]().union(*(decision.withheld for decision in all_of_them))
    return speaker if withheld == speaker.withheld else replace(speaker, withheld=withheld)
