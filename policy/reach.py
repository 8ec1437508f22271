"""Access rules that can never decide: what they would allow is allowed anyway, or by rules before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.document import ANY_PURPOSE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policy.access import CompiledAccessRule
    from policy.compile import Policy
    from policy.report import Report

Cell = tuple[str, str, str, str]
"""Jurisdiction, operation, purpose, dataset: what a rule decides about one RegionCode."""
OTHER_PURPOSE = ""
"""Every purpose that no rule names, and none."""


def check_reach(policy: Policy, report: Report) -> None:
    """Warns of each access rule that decides nothing."""
    purposes = {purpose for rule in policy.rules for purpose in rule.purposes} - {ANY_PURPOSE} | {OTHER_PURPOSE}
    decided: dict[str, set[Cell]] = {code: set() for code in policy.regions}
    by: dict[str, set[str]] = {code: set() for code in policy.regions}
    for number, rule in enumerate(policy.rules):
        cells = set(_cells(rule, policy, purposes))
        reaches, earlier = False, set[str]()
        crossing = [code for code in rule.regions if code in decided]
        for code in crossing:
            home = policy.regions[code].jurisdictions
            foreign = {cell for cell in cells if cell[0] not in home}
            earlier |= by[code] if foreign else set()
            reaches = reaches or not foreign <= decided[code]
            decided[code] |= foreign
            by[code].add(rule.name)
        if not reaches:
            if not crossing:
                reason = "no residency rule covers its regions"
            elif earlier:
                reason = (
                    f"{', '.join(sorted(earlier))} before it {'decide' if len(earlier) > 1 else 'decides'} all of it"
                )
            else:
                reason = "its askers are at home where its regions may be stored, and need no rule"
            report.warn("UNREACHABLE_RULE", f"access rule {rule.name} never decides: {reason}", ("access", number))


def _cells(rule: CompiledAccessRule, policy: Policy, purposes: set[str]) -> Iterator[Cell]:
    for jurisdiction in rule.askers:
        for operation in rule.operations:
            for purpose in purposes if ANY_PURPOSE in rule.purposes else rule.purposes:
                for dataset in rule.datasets or policy.datasets:
                    yield jurisdiction, operation, purpose, dataset
