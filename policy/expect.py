"""The policy's own tests: each entry of `expect` is put to the compiled policy, and one that fails blocks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.groups import Groups
from policy.wording import join

if TYPE_CHECKING:
    from policy.compile import Policy
    from policy.document import Expectation
    from policy.draft import Draft
    from policy.model import AccessDecision, Operation
    from policy.report import Path, Report

_ABOUT_ACCESS = ("asker", "operation", "decision")


def check_expectation_form(entry: Expectation, path: Path, draft: Draft, report: Report) -> None:
    """An entry tests one decision or where rows are stored, and refers to what exists."""
    given = [name for name in (*_ABOUT_ACCESS, "purpose", "dataset", "withheld", "rule") if _has(entry, name)]
    if entry.never_stored_in is not None and given:
        report.error("EXPECT_FORM", "never_stored_in stands alone with region; write two entries", path)
    elif entry.never_stored_in is None and not all(_has(entry, name) for name in _ABOUT_ACCESS):
        report.error("EXPECT_FORM", "an entry needs from, operation and decision, or never_stored_in", path)
    if entry.withheld and entry.decision == "deny":
        report.error("EXPECT_FORM", "what is denied withholds no columns", (*path, "withheld"))
    _check_references(entry, path, draft, report)


def _has(entry: Expectation, name: str) -> bool:
    return getattr(entry, name) is not None


def _check_references(entry: Expectation, path: Path, draft: Draft, report: Report) -> None:
    document = draft.document
    known = {it.jurisdiction for it in document.idcs.values()}
    if not draft.unreadable.get("idcs"):
        if entry.asker is not None and entry.asker not in known:
            report.error("UNKNOWN_JURISDICTION", f"no IDC stands under {entry.asker}", (*path, "from"))
        for number, jurisdiction in enumerate(entry.never_stored_in or ()):
            if jurisdiction not in known:
                message = f"no IDC stands under {jurisdiction} yet"
                report.warn("UNKNOWN_JURISDICTION", message, (*path, "never_stored_in", number))
    if draft.unreadable.get("datasets"):
        return
    if entry.dataset is not None and entry.dataset not in document.datasets:
        report.error("UNKNOWN_DATASET", f"there is no dataset {entry.dataset}", (*path, "dataset"))
        return
    judged = [entry.dataset] if entry.dataset else list(document.datasets)
    columns = {column for name in judged for column in document.datasets[name].columns}
    for number, column in enumerate(entry.withheld or ()):
        if column not in columns:
            message = f"there is no column {column} in {join(judged)}"
            report.error("UNKNOWN_COLUMN", message, (*path, "withheld", number))


def check_expectations(policy: Policy, report: Report) -> None:
    """Puts every entry to the policy and reports each that fails, with what holds instead."""
    groups = Groups(policy.document.groups)
    for number, entry in enumerate(policy.document.expect):
        path = ("expect", number)
        for code in groups.expand((entry.region,)):
            failure = _storage_failure(policy, entry, code) or _access_failure(policy, entry, code)
            if failure:
                report.error("EXPECT_FAILED", failure, path)


def _storage_failure(policy: Policy, entry: Expectation, code: str) -> str:
    residency = policy.regions[code]
    wrong = residency.jurisdictions.intersection(entry.never_stored_in or ())
    if not wrong:
        return ""
    return f"expected {code} never to be stored in {join(wrong)}, but rule {residency.rule} permits it"


def _access_failure(policy: Policy, entry: Expectation, code: str) -> str:
    if entry.asker is None or entry.operation is None:
        return ""
    for dataset in [entry.dataset] if entry.dataset else policy.datasets:
        decision = policy.decide_for_jurisdiction(dataset, code, entry.asker, entry.operation, entry.purpose or "")
        failure = _difference(entry, decision, frozenset(policy.datasets[dataset].columns))
        if failure:
            return f"{_question(entry, dataset, code, entry.operation)}: {failure}"
    return ""


def _question(entry: Expectation, dataset: str, code: str, operation: Operation) -> str:
    purpose = f"for purpose {entry.purpose}" if entry.purpose else "without a purpose"
    return f"{operation} of {dataset} in {code} from {entry.asker} {purpose}"


def _difference(entry: Expectation, decision: AccessDecision, columns: frozenset[str]) -> str:
    """What is other than expected; empty when nothing is."""
    outcome = "allow" if decision.allowed else "deny"
    if outcome != entry.decision:
        return f"expected {entry.decision}, but rule {decision.rule} decides {outcome}"
    if entry.rule is not None and entry.rule != decision.rule:
        return f"expected rule {entry.rule} to decide, but {decision.rule} does"
    if entry.withheld is not None and decision.withheld != columns.intersection(entry.withheld):
        expected = join(columns.intersection(entry.withheld)) if columns.intersection(entry.withheld) else "nothing"
        actual = join(decision.withheld) if decision.withheld else "nothing"
        return f"expected {expected} to be withheld, but rule {decision.rule} withholds {actual}"
    return ""
