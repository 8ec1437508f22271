"""Law L8 over every question of a small world: what is done is what the document allows in so many words.

The oracle below reads the policy's document, and shares no code with the judge. `LAW` has five IDCs under four
jurisdictions, a RegionCode with two lawful jurisdictions, one that forbids transit, and one that nobody covers.
"""

from __future__ import annotations

import itertools
from collections import Counter

from gateway.judge import Deny, Forward, Hold, Redirect, Serve, asking_side, judge
from gateway.operations import Action, CallContext, RowOperation
from policy.errors import AccessDenied, TableTooOld, UnknownRegion
from policy.model import Phase
from policy.table import RoutingTable
from tests.support import routing

LAW = routing.policy()
IDCS = (*LAW.idcs, "mars")
REGIONS = ("CN", "DE", "FR", "SG", "US", "", "de", "DE ")
PURPOSES = ("", "support", "entry", "nonsense")
ACTIONS = {Action.GET: "read", Action.PUT: "write", Action.DELETE: "write"}
TABLES = {
    "serving": routing.table(LAW),
    "opening": RoutingTable.build(LAW, routing.records(LAW, routing.OWNERS, phase=Phase.OPENING), 10),
    "unassigned": RoutingTable.build(LAW, (), 10),
}


def jurisdictions_of(region_code: str) -> set[str]:
    """Where the document lets the RegionCode be stored; empty when nothing covers it."""
    return {j for rule in LAW.document.residency if region_code in rule.regions for j in rule.jurisdictions}


def is_allowed(region_code: str, idc: str, operation: str, purpose: str) -> bool:
    """Whether the document lets that IDC do it, by its words."""
    if idc not in LAW.document.idcs:
        return False
    asker = LAW.document.idcs[idc].jurisdiction
    if asker in jurisdictions_of(region_code):
        return True
    return any(
        region_code in rule.regions
        and asker in rule.askers
        and operation in rule.operations
        and purpose in rule.purposes
        for rule in LAW.document.access
    )


def questions():
    """Every question that can be asked: where, by whom, for whom, what, why."""
    # What a peer has forwarded entered in another IDC than this one.
    entries = [(idc, entered) for idc in LAW.idcs for entered in ("", *IDCS) if entered != idc]
    return itertools.product(entries, ("", *IDCS), REGIONS, ACTIONS, PURPOSES, TABLES, (True, False))


def test_law_l8_nothing_is_done_that_the_document_does_not_allow_to_every_asker():
    seen: Counter[str] = Counter()
    for (idc, entered), origin, region_code, action, purpose, state, is_fresh in questions():
        asking = asking_side(idc, CallContext(0.0, purpose, origin, entered))
        operation = RowOperation(action, LAW.datasets["customers"], region_code, "k")
        verdict = judge(TABLES[state], operation, asking, is_fresh=is_fresh)
        seen[type(verdict).__name__] += 1
        askers = {entered or idc, origin or entered or idc}
        allowed = all(is_allowed(region_code, asker, ACTIONS[action], purpose) for asker in askers)
        owner = routing.OWNERS.get(region_code) if state != "unassigned" else None
        where = (idc, entered, origin, region_code, action.name, purpose, state, is_fresh)
        if isinstance(verdict, Serve | Forward | Hold | Redirect):
            assert allowed, where
        if isinstance(verdict, Serve):
            assert owner == idc, where
            assert state == "serving", where
            assert LAW.idcs[idc] in jurisdictions_of(region_code), where
        if isinstance(verdict, Forward):
            assert owner not in {idc, None}, where
            assert not entered, (where, "one hop at most")
            # Chinese rows pass through no other jurisdiction.
            assert region_code != "CN" or LAW.idcs[idc] == "CN", where
        if isinstance(verdict, Deny):
            _check_denial(verdict, where, allowed=allowed, is_fresh=is_fresh)
        if not is_fresh and not isinstance(verdict, Deny):
            places = {idc, owner or idc, *askers}
            assert {LAW.idcs.get(place) for place in places} == {LAW.idcs[idc]}, (where, "a border without freshness")
    assert min(seen.values()) > 100, seen
    assert set(seen) == {"Serve", "Forward", "Hold", "Redirect", "Deny"}


def _check_denial(verdict: Deny, where: tuple[object, ...], *, allowed: bool, is_fresh: bool) -> None:
    region_code = where[3]
    if isinstance(verdict.error, AccessDenied):
        assert not allowed, where
        assert verdict.error.rule, (where, "a denial names its rule (law L7)")
        assert verdict.error.policy_revision == LAW.revision
    elif isinstance(verdict.error, TableTooOld):
        assert not is_fresh, where
    else:
        assert isinstance(verdict.error, UnknownRegion), where
        assert not jurisdictions_of(str(region_code)), where


def test_law_l8_whatever_is_allowed_and_owned_is_done():
    """Refusing everything would be safe and of no use."""
    table = TABLES["serving"]
    for idc, region_code, purpose in itertools.product(LAW.idcs, routing.OWNERS, PURPOSES):
        operation = RowOperation(Action.GET, LAW.datasets["customers"], region_code, "k")
        verdict = judge(table, operation, asking_side(idc, CallContext(0.0, purpose)), is_fresh=True)
        assert isinstance(verdict, Deny) == (not is_allowed(region_code, idc, "read", purpose))
