"""What one policy changes against another: schema, and who may see what, in sentences for the person who applies it.

Access is compared by its effect, not by its text: every decision of the old policy against the same one of the new.
RegionCodes that both policies treat alike are decided once, and changes that read alike become one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from policy.document import ANY_PURPOSE
from policy.groups import Groups
from policy.model import Operation
from policy.wording import join, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from policy.compile import Policy
    from policy.model import AccessDecision
    from policy.report import Path

ABSENT = "unknown"
AT_HOME = "allowed at home"
DENIED = "denied"
_OTHER_PURPOSE = ""


class AccessChange(NamedTuple):
    """Who may see or write what, before and after."""

    sentence: str
    example: str
    """One concrete case."""


class Question(NamedTuple):
    """A decision that is the same for all RegionCodes of one kind."""

    jurisdiction: str
    operation: Operation
    dataset: str
    purpose: str


@dataclass(frozen=True, slots=True)
class SchemaDifference:
    """What the datasets gain, and what they would lose or change, which is refused."""

    added: tuple[str, ...]
    """`dataset` or `dataset.column`."""
    refused: tuple[tuple[Path, str], ...]
    """Path in the new document, and why."""


def schema_difference(current: Policy | None, new: Policy) -> SchemaDifference:
    """Compares the datasets; only additions are possible."""
    before = current.datasets if current else {}
    added: list[str] = []
    refused: list[tuple[Path, str]] = [
        (("datasets", name), f"dataset {name} is gone; datasets can only be added")
        for name in before
        if name not in new.datasets
    ]
    for name, dataset in new.datasets.items():
        if name not in before:
            added += [name, *(f"{name}.{column}" for column in dataset.columns)]
            continue
        old = before[name]
        if old.key_type is not dataset.key_type:
            refused.append((("datasets", name, "key"), f"the key of {name} is {old.key_type} and cannot change"))
        for column in old.columns.values():
            kept, path = dataset.columns.get(column.name), ("datasets", name, "columns", column.name)
            if kept is None:
                refused.append((path, f"column {name}.{column.name} is gone; columns can only be added"))
            elif kept.type is not column.type:
                refused.append(((*path, "type"), f"column {name}.{column.name} is {column.type} and cannot change"))
        added += [f"{name}.{column}" for column in dataset.columns if column not in old.columns]
    return SchemaDifference(tuple(added), tuple(refused))


def access_changes(current: Policy | None, new: Policy) -> tuple[AccessChange, ...]:
    """One sentence, with an example, for each change of law or of decisions."""
    return (*_law_changes(current, new), *_decision_changes(current, new))


def _law_changes(current: Policy | None, new: Policy) -> Iterator[AccessChange]:
    if current is None:
        return
    for idc, jurisdiction in new.idcs.items():
        before = current.idcs.get(idc)
        if before is not None and before != jurisdiction:
            example = f"a call that enters at {idc} asks from {jurisdiction}; asked from {before}"
            yield AccessChange(f"{idc} stands under {jurisdiction}, was {before}", example)
    changes: dict[str, list[str]] = {}
    examples: dict[str, str] = {}
    for code, residency in new.regions.items():
        old = current.regions.get(code)
        if old is None:
            continue
        if old.jurisdictions != residency.jurisdictions:
            what = f"may be stored in {join(residency.jurisdictions)}, was {join(old.jurisdictions)}"
            changes.setdefault(what, []).append(code)
            where = f"rows of {code} may lie in {_homes(new, code)}"
            examples.setdefault(what, f"{where}; could lie in {_homes(current, code)}")
        if old.allows_transit != residency.allows_transit:
            what = f"{'may now' if residency.allows_transit else 'may no longer'} pass through other jurisdictions"
            changes.setdefault(what, []).append(code)
            does = "carries the call to the owner" if residency.allows_transit else "only tells who the owner is"
            examples.setdefault(what, f"a gateway elsewhere that is asked for a row of {code} {does}")
    for what, codes in changes.items():
        yield AccessChange(f"{shorten(Groups(new.document.groups).name(codes))} {what}", examples[what])


def _homes(policy: Policy, code: str) -> str:
    lawful = [idc for idc, jurisdiction in policy.idcs.items() if jurisdiction in policy.regions[code].jurisdictions]
    return join(lawful, "or") if lawful else "no IDC"


def _decision_changes(current: Policy | None, new: Policy) -> Iterator[AccessChange]:
    regions: dict[tuple[Question, str, str], list[str]] = {}
    kinds = _kinds(current, new)
    for question in _questions(current, new):
        for codes in kinds:
            before = _outcome(current, question, codes[0])
            after = _outcome(new, question, codes[0])
            if before != after and not (before == ABSENT and after in {AT_HOME, DENIED}) and after != ABSENT:
                regions.setdefault((question, before, after), []).extend(codes)
    yield from _sentences(regions, current, new)


def _sentences(
    regions: Mapping[tuple[Question, str, str], list[str]], current: Policy | None, new: Policy
) -> Iterator[AccessChange]:
    """Joins what differs only in purpose or dataset."""
    groups = Groups(new.document.groups)
    purposes: dict[tuple[str, str, str, str, str, str], list[str]] = {}
    cases: dict[str, str] = {}
    for (question, before, after), codes in regions.items():
        where = shorten(groups.name(codes))
        cases[where] = codes[0]
        known = (question.jurisdiction, question.operation.value, question.dataset, where, before, after)
        purposes.setdefault(known, []).append(question.purpose)
    datasets: dict[tuple[str, str, str, str, str, tuple[str, ...]], list[str]] = {}
    for (jurisdiction, operation, dataset, where, before, after), named in purposes.items():
        datasets.setdefault((jurisdiction, operation, where, before, after, tuple(named)), []).append(dataset)
    everything = _purposes_of([new])
    for (jurisdiction, operation, where, before, after, named), judged in datasets.items():
        purpose = _purpose_words(named, everything)
        was = "" if before == ABSENT else f", was {before}"
        sentence = f"from {jurisdiction}, {operation} of {join(judged)} in {where} {purpose}: {after}{was}"
        stated = next(filter(None, named), "")
        question = Question(jurisdiction, Operation(operation), judged[0], stated)
        yield AccessChange(sentence, _example(current, new, question, cases[where]))


def _example(current: Policy | None, new: Policy, question: Question, code: str) -> str:
    asker = next((idc for idc, it in new.idcs.items() if it == question.jurisdiction), question.jurisdiction)
    purpose = f"for {question.purpose}" if question.purpose else "without a purpose"
    asks = f"{asker} asks to {question.operation.value} {question.dataset} of {code} {purpose}"
    before = _verdict(current, question, code)
    return f"{asks}: {_verdict(new, question, code)}" + (f"; was {before}" if before else "")


def _verdict(policy: Policy | None, question: Question, code: str) -> str:
    """The decision with the rule that makes it; empty where there is nothing to decide."""
    if policy is None or _outcome(policy, question, code) == ABSENT:
        return ""
    decision = policy.decide_for_jurisdiction(
        question.dataset, code, question.jurisdiction, question.operation, question.purpose
    )
    without = f" without {join(decision.withheld)}" if decision.withheld else ""
    return f"{'allowed' if decision.allowed else 'denied'} by {decision.rule}{without}"


def _purpose_words(named: tuple[str, ...], everything: set[str]) -> str:
    if everything <= set(named):
        return "for any purpose"
    return f"for purpose {join((purpose or 'any other' for purpose in named), 'or')}"


def _questions(current: Policy | None, new: Policy) -> Iterator[Question]:
    both = [new] if current is None else [current, new]
    jurisdictions = {jurisdiction for policy in both for jurisdiction in policy.idcs.values()}
    for jurisdiction in sorted(jurisdictions):
        for operation in Operation:
            for purpose in sorted(_purposes_of(both)):
                for dataset in new.datasets:
                    yield Question(jurisdiction, operation, dataset, purpose)


def _purposes_of(policies: Iterable[Policy]) -> set[str]:
    """Every purpose that some rule names, and the one that stands for all others."""
    named = {purpose for policy in policies for rule in policy.rules for purpose in rule.purposes}
    return named - {ANY_PURPOSE} | {_OTHER_PURPOSE}


def _kinds(current: Policy | None, new: Policy) -> list[list[str]]:
    """The new policy's RegionCodes, grouped so that all of a group are decided alike by both policies."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for code in new.regions:
        kinds.setdefault((_kind(current, code), _kind(new, code)), []).append(code)
    return list(kinds.values())


def _kind(policy: Policy | None, code: str) -> tuple[object, ...] | None:
    if policy is None or code not in policy.regions:
        return None
    covering = tuple(number for number, rule in enumerate(policy.rules) if code in rule.regions)
    return policy.regions[code].jurisdictions, covering


def _outcome(policy: Policy | None, question: Question, code: str) -> str:
    """The decision in words, without the rule's name where that would make a renamed rule look like a change."""
    if policy is None or code not in policy.regions or question.dataset not in policy.datasets:
        return ABSENT
    if question.jurisdiction not in policy.idcs.values():
        return ABSENT
    jurisdiction, operation, dataset, purpose = question
    return _in_words(policy.decide_for_jurisdiction(dataset, code, jurisdiction, operation, purpose))


def _in_words(decision: AccessDecision) -> str:
    if not decision.allowed:
        return DENIED
    if not decision.crosses_border:
        return AT_HOME
    without = f" without {join(decision.withheld)}" if decision.withheld else ""
    return f"allowed by {decision.rule}{without}"
