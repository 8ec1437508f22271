"""What the parts of a policy mean together: references, overlap, coverage, and what an outage would leave.

Each check looks at one thing and reports all it finds. A part that refers to something unreadable is not blamed for
it. Rules that can never decide, expectations and outages are judged on the compiled policy, once nothing blocks it.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from policy.compile import compile_policy
from policy.countries import COUNTRIES, is_known_place
from policy.expect import check_expectation_form, check_expectations
from policy.groups import GroupCycle, Groups, GroupTooDeep, UnknownName
from policy.model import Operation
from policy.reach import check_reach
from policy.wording import join, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.compile import Policy
    from policy.document import AccessRule, ResidencyRule
    from policy.draft import Draft
    from policy.report import Path, Report


class Context(NamedTuple):
    """What every check works with."""

    draft: Draft
    report: Report
    groups: Groups


def analyse(draft: Draft, report: Report) -> None:
    """Runs every check; what they find goes to the report."""
    context = Context(draft, report, Groups(draft.document.groups))
    check_groups(context)
    check_rule_names(context)
    covered = check_residency(context)
    check_access(context)
    for path, entry in draft.expectations():
        check_expectation_form(entry, path, draft, report)
        _check_names((entry.region,), (*path, "region"), context)
    if draft.is_whole and covered is not None:
        check_coverage(context, covered)
    if draft.is_whole and not report.has_errors:
        policy = compile_policy(draft.document, 0)
        check_reach(policy, report)
        check_expectations(policy, report)
        check_outages(policy, report)


def check_groups(context: Context) -> None:
    """Groups hold known names, never themselves, and are not named like countries."""
    for name, members in context.draft.document.groups.items():
        path = ("groups", name)
        if name in COUNTRIES:
            message = f"a group may not be named like the country {name}: the word would mean two things"
            context.report.error("GROUP_NAME", message, path, at_key=True)
        _check_names(members, path, context)
        if not members:
            context.report.warn("GROUP_EMPTY", f"group {name} is empty", path)


def check_rule_names(context: Context) -> None:
    """A rule's name is what a decision is explained by, so it stands for one rule (law L7)."""
    first: dict[str, Path] = {}
    for path, rule in (*context.draft.residency(), *context.draft.access()):
        if rule.name in first:
            line = context.report.positions.find(first[rule.name]).line
            context.report.error("RULE_NAME", f"rule {rule.name} stands twice; first in line {line}", (*path, "name"))
        first.setdefault(rule.name, path)


def check_residency(context: Context) -> dict[str, str] | None:
    """Weights and jurisdictions are lawful, and no code is under two rules.

    Returns the rule of each code; None when a name stands for nothing, so that coverage cannot be known.
    """
    owner: dict[str, str] = {}
    is_known = True
    for path, rule in context.draft.residency():
        _check_jurisdictions(rule, path, context)
        _check_weights(rule, path, context)
        for number, name in enumerate(rule.regions):
            here = (*path, "regions", number)
            codes = _expand(name, here, context)
            is_known = is_known and codes is not None
            taken: dict[str, list[str]] = {}
            for code in codes or ():
                if code in owner:
                    taken.setdefault(owner[code], []).append(code)
                owner.setdefault(code, rule.name)
            for other, clash in taken.items():
                verb = "is" if len(clash) == 1 else "are"
                what = f"{shorten(clash)} {verb} under rule {other} already"
                what = f"{what}; a RegionCode is under exactly one rule"
                if other == rule.name:
                    what = f"{shorten(clash)} {verb} named twice in rule {other}"
                context.report.error("OVERLAP", what, here)
    return owner if is_known else None


def _check_jurisdictions(rule: ResidencyRule, path: Path, context: Context) -> None:
    idcs = context.draft.document.idcs
    known = {entry.jurisdiction for entry in idcs.values()}
    for number, jurisdiction in enumerate(rule.jurisdictions):
        if jurisdiction not in known and not context.draft.unreadable.get("idcs"):
            message = f"no IDC stands under {jurisdiction} yet{_hint(jurisdiction, known)}"
            context.report.warn("UNKNOWN_JURISDICTION", message, (*path, "jurisdictions", number))


def _check_weights(rule: ResidencyRule, path: Path, context: Context) -> None:
    idcs = context.draft.document.idcs
    for idc, weight in rule.idcs.items():
        here = (*path, "idcs", idc)
        if idc not in idcs:
            if not context.draft.may_have("idcs", idc):
                context.report.error("UNKNOWN_IDC", f"there is no IDC {idc}{_hint(idc, idcs)}", here, at_key=True)
        elif idcs[idc].jurisdiction not in rule.jurisdictions:
            place = f"{idc} stands under {idcs[idc].jurisdiction}"
            message = f"{place}, where rule {rule.name} permits only {join(rule.jurisdictions)}"
            if weight:
                context.report.error("FORBIDDEN_IDC", message, here, at_key=True)
            else:
                context.report.warn("FORBIDDEN_IDC", f"{message}; its weight is 0, so nothing lies there", here)
    if not any(rule.idcs.values()):
        context.report.error("NO_WEIGHT", f"rule {rule.name} gives no IDC a weight above 0", (*path, "idcs"))


def check_access(context: Context) -> None:
    """Access rules refer to what exists, and withhold only where that protects something."""
    document = context.draft.document
    known = {entry.jurisdiction for entry in document.idcs.values()}
    for path, rule in context.draft.access():
        _check_names(rule.regions, (*path, "regions"), context)
        for number, jurisdiction in enumerate(rule.askers):
            if jurisdiction not in known and not context.draft.unreadable.get("idcs"):
                message = f"no IDC stands under {jurisdiction}{_hint(jurisdiction, known)}"
                context.report.error("UNKNOWN_JURISDICTION", message, (*path, "from", number))
        for number, dataset in enumerate(rule.datasets or ()):
            if dataset not in document.datasets and not context.draft.may_have("datasets", dataset):
                message = f"there is no dataset {dataset}{_hint(dataset, document.datasets)}"
                context.report.error("UNKNOWN_DATASET", message, (*path, "datasets", number))
        _check_withhold(rule, path, context)


def _check_withhold(rule: AccessRule, path: Path, context: Context) -> None:
    if rule.withhold and Operation.WRITE in rule.operations:
        message = "a write replaces the whole row, withheld columns too: put write into a rule that withholds nothing"
        context.report.error("WITHHOLD_ON_WRITE", message, (*path, "withhold"))
    datasets = context.draft.document.datasets
    judged = [datasets[name] for name in rule.datasets or datasets if name in datasets]
    classes = {column.data_class for entry in judged for column in entry.columns.values() if column.data_class}
    for number, name in enumerate(rule.withhold):
        if name not in classes and not context.draft.unreadable.get("datasets"):
            message = f"no column has class {name}, so nothing is withheld by it{_hint(name, classes)}"
            context.report.warn("UNKNOWN_CLASS", message, (*path, "withhold", number))


def check_coverage(context: Context, covered: dict[str, str]) -> None:
    """Codes that are named have a home, and exist."""
    document, report = context.draft.document, context.report
    named: dict[str, Path] = {}
    for name, members in document.groups.items():
        named |= {code: ("groups", name, number) for number, code in enumerate(members) if code not in named}
    for path, rule in (*context.draft.residency(), *context.draft.access()):
        places = {code: (*path, "regions", number) for number, code in enumerate(rule.regions)}
        named |= {code: place for code, place in places.items() if code not in named}
    for path, entry in context.draft.expectations():
        missing = [code for code in _expand(entry.region, None, context) or () if code not in covered]
        if missing:
            report.error("UNCOVERED", f"no residency rule covers {shorten(missing)}", (*path, "region"))
    for code, path in named.items():
        if code in document.groups:
            continue
        if code not in covered:
            report.warn("UNCOVERED", f"no residency rule covers {code}: its rows will be refused", path)
        if not is_known_place(code):
            report.warn("UNKNOWN_COUNTRY", f"{code} is not a country of ISO 3166-1; is it a typing error?", path)


def check_outages(policy: Policy, report: Report) -> None:
    """What the loss of each IDC would leave."""
    for idc in policy.idcs:
        hit = [rule for rule in policy.document.residency if rule.idcs.get(idc)]
        if not hit:
            report.inform("IDC_IDLE", f"no rule gives {idc} a weight: it owns nothing", ("idcs", idc), at_key=True)
        sentences: list[str] = []
        for rule in hit:
            left = [other for other, law in policy.idcs.items() if other != idc and law in rule.jurisdictions]
            sentences.append(f"leaves {join(left)} for {rule.name}" if left else f"leaves {rule.name} no lawful IDC")
        if sentences:
            report.inform("IDC_LOSS", f"loss of {idc} {', '.join(sentences)}", ("idcs", idc), at_key=True)


def _check_names(names: Iterable[str], path: Path, context: Context) -> None:
    """Reports names that stand for nothing; `path` is of the list, or of the name itself when it is one field."""
    for number, name in enumerate(names):
        _expand(name, path if path[-1] == "region" else (*path, number), context)


def _expand(name: str, path: Path | None, context: Context) -> tuple[str, ...] | None:
    """RegionCodes of a name; None, and a finding at `path`, when it stands for nothing."""
    if context.draft.may_have("groups", name):
        return None
    try:
        return context.groups.expand((name,))
    except UnknownName as error:
        # Of a group's broken member, only the group is told: everyone who uses it would repeat the same.
        is_told = name in context.draft.document.groups
        code = "UNKNOWN_REGION"
        message = str(error)
    except GroupCycle as error:
        # Told where the circle's first group in the text has its next: once, whoever finds it.
        first = min(error.chain, key=list(context.draft.document.groups).index)
        is_told = path is None or path[:2] != ("groups", first)
        code, message = "GROUP_CYCLE", str(error)
    except GroupTooDeep as error:
        is_told = path is None or path[0] != "groups"
        code, message = "GROUP_DEPTH", str(error)
    if path is not None and not is_told:
        context.report.error(code, message, path)
    return None


def _hint(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
