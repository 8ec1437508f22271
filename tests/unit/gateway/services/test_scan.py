"""A listing is judged before rows are read and again before they leave (laws L6, L8)."""

from __future__ import annotations

import pytest

from gateway.operations import CallContext
from gateway.scan import ScanJudge, ScanQuery, may_pass
from policy.errors import AccessDenied, TableTooOld, UnknownRegion
from rowstore.filter import parse_filter
from tests.support.routing import POLICY, HandView, policy, table

SUPPORT = CallContext(deadline=0.0, purpose="support", ingress_idc="sin")
AT_HOME = CallContext(deadline=0.0)
OWN = ("fra",)


def judged(view: HandView, context: CallContext, *, filter_text: str = "", idc: str = "fra") -> ScanJudge:
    dataset = view.table.policy.datasets["customers"]
    condition = parse_filter(filter_text, dataset) if filter_text else None
    return ScanJudge(idc, view, ScanQuery(dataset, "DE", condition, None, 10), context)


OWN = ("fra",)


def test_without_a_fresh_table_only_the_own_jurisdiction_lists_what_is_owned_there():
    """Law L6."""
    view = HandView(table())
    view.is_fresh = False
    assert judged(view, AT_HOME).judge(view.table, OWN).allowed
    with pytest.raises(TableTooOld):
        judged(view, AT_HOME).judge(view.table, ("fra", "sin"))
    with pytest.raises(TableTooOld):
        judged(view, SUPPORT).judge(view.table, OWN)


def test_rows_across_a_border_do_not_leave_after_freshness_was_lost():
    view = HandView(table())
    judge = judged(view, SUPPORT)
    decision = judge.judge(view.table, OWN)
    assert judge.judge_again(decision, view.table, OWN) is decision
    view.is_fresh = False
    with pytest.raises(TableTooOld):
        judge.judge_again(decision, view.table, OWN)


def test_rows_across_a_border_do_not_leave_when_the_law_has_changed_meanwhile():
    view = HandView(table())
    old = view.table
    judge = judged(view, SUPPORT)
    decision = judge.judge(old, OWN)
    stricter = POLICY.replace("regions: [DE, FR], from: [SG]", "regions: [FR], from: [SG]")
    view.show(table(policy(stricter, revision=2), store_revision=11))
    with pytest.raises(AccessDenied) as caught:
        judge.judge_again(decision, old, OWN)
    assert caught.value.policy_revision == 2


def test_what_a_newer_law_withholds_is_withheld():
    view = HandView(table())
    old = view.table
    judge = judged(view, SUPPORT, filter_text="spend > 1")
    decision = judge.judge(old, OWN)
    assert decision.withheld == {"name"}
    everything = POLICY.replace("spend: {type: int64}", "spend: {type: int64, class: personal}")
    view.show(table(policy(everything, revision=2), store_revision=11))
    with pytest.raises(AccessDenied, match="spend"):
        judge.judge_again(decision, old, OWN)


def test_a_filter_may_not_look_at_what_is_withheld():
    view = HandView(table())
    with pytest.raises(AccessDenied, match="withholds name"):
        judged(view, SUPPORT, filter_text='spend > 1 AND name = "x"').judge(view.table, OWN)
    assert judged(view, AT_HOME, filter_text='name = "x"').judge(view.table, OWN).allowed


def test_rows_pass_through_a_jurisdiction_that_may_hold_them_or_where_transit_is_allowed():
    known = table()
    assert may_pass(known, "DE", "sin")
    forbidding = table(policy(POLICY.replace("jurisdictions: [EU, UK],", "jurisdictions: [EU, UK], transit: forbid,")))
    assert not may_pass(forbidding, "DE", "sin")
    assert may_pass(forbidding, "DE", "ams")
    with pytest.raises(UnknownRegion):
        may_pass(known, "XX", "fra")
