from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.judge import (
    CLOSING,
    DRAINING,
    OPENING,
    UNASSIGNED,
    Asking,
    Deny,
    Forward,
    Hold,
    Redirect,
    Serve,
    asking_side,
    judge,
    judge_all,
    still_stands,
)
from gateway.operations import Action, CallContext, RowOperation
from policy.errors import AccessDenied, TableTooOld, UnknownRegion
from policy.model import Phase
from policy.move import READABLE, WRITABLE
from policy.records import ShardRecord
from policy.table import RoutingTable
from tests.support import routing
from tests.support.routing import POLICY

LAW = routing.policy()
TABLE = routing.table(LAW)


def operation(region_code: str, action: Action = Action.GET, key: str = "k") -> RowOperation:
    return RowOperation(action, LAW.datasets["customers"], region_code, key)


def verdict(
    idc: str,
    region_code: str,
    *,
    action: Action = Action.GET,
    purpose: str = "",
    ingress: str = "",
    origin: str = "",
    is_fresh: bool = True,
    table: RoutingTable = TABLE,
):
    asking = asking_side(idc, CallContext(0.0, purpose, origin, ingress))
    return judge(table, operation(region_code, action), asking, is_fresh=is_fresh)


def test_what_this_idc_owns_is_served_to_its_own_jurisdiction_without_a_guard():
    found = verdict("fra", "DE", action=Action.PUT)
    assert isinstance(found, Serve)
    assert (found.route.idc, found.decision.rule, found.is_guarded) == ("fra", "europe", False)


def test_what_another_idc_owns_is_forwarded():
    found = verdict("fra", "FR")
    assert isinstance(found, Forward)
    assert found.route.idc == "ams"


def test_the_entry_of_a_call_asks_even_when_a_peer_has_forwarded_it():
    denied = verdict("fra", "DE", ingress="sin")
    assert isinstance(denied, Deny)
    assert isinstance(denied.error, AccessDenied)
    allowed = verdict("fra", "DE", ingress="sin", purpose="support")
    assert isinstance(allowed, Serve)
    assert (allowed.is_guarded, allowed.decision.rule, allowed.decision.withheld) == (True, "eu-support", {"name"})


def test_a_stated_origin_can_only_narrow_what_is_allowed():
    assert isinstance(verdict("fra", "DE", origin="ams"), Serve)
    assert isinstance(verdict("fra", "DE", origin="sin"), Deny)
    assert isinstance(verdict("fra", "DE", origin="nowhere"), Deny)
    withheld = verdict("fra", "DE", origin="sin", purpose="support")
    assert isinstance(withheld, Serve)
    assert withheld.decision.withheld == {"name"}
    assert isinstance(verdict("sin", "DE", origin="fra"), Deny)


def test_a_denial_names_rule_and_revision():
    """Law L7."""
    denied = verdict("sin", "CN")
    assert isinstance(denied, Deny)
    assert isinstance(denied.error, AccessDenied)
    assert (denied.error.rule, denied.error.policy_revision) == ("china", 1)


def test_an_unknown_region_has_no_home():
    """Law L8."""
    denied = verdict("fra", "XX")
    assert isinstance(denied, Deny)
    assert isinstance(denied.error, UnknownRegion)


def test_a_forwarded_operation_that_is_not_owned_here_is_never_forwarded_again():
    found = verdict("fra", "FR", ingress="ams")
    assert isinstance(found, Redirect)
    assert found.route.idc == "ams"


def test_where_transit_is_forbidden_the_caller_is_sent_to_the_owner():
    """Law L1: the row does not even pass through another jurisdiction."""
    found = verdict("fra", "CN", purpose="audit")
    assert isinstance(found, Redirect)
    assert found.route.idc == "sha"
    assert isinstance(verdict("sha", "CN", purpose="audit", origin="fra"), Serve), "straight from the owner"
    forwarded_by_an_old_law = verdict("sha", "CN", purpose="audit", ingress="fra")
    assert isinstance(forwarded_by_an_old_law, Redirect)


def test_transit_inside_the_rules_jurisdictions_is_no_transit():
    law = routing.policy(POLICY.replace("shards: 4}", "shards: 4, transit: forbid}"))
    assert isinstance(verdict("fra", "FR", table=routing.table(law)), Forward)


def test_a_shard_without_an_owner_is_held_and_never_guessed():
    """Law L8."""
    found = verdict("fra", "DE", table=RoutingTable.build(LAW, (), 10))
    assert isinstance(found, Hold)
    assert found.reason == UNASSIGNED


def test_a_shard_without_an_owner_is_still_denied_to_whom_it_is_denied():
    assert isinstance(verdict("sin", "DE", table=RoutingTable.build(LAW, (), 10)), Deny)


def in_phase(phase: Phase, region_code: str = "DE") -> RoutingTable:
    return RoutingTable.build(LAW, routing.records(LAW, {region_code: routing.OWNERS[region_code]}, phase=phase), 10)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize(
    ("action", "served"), [(Action.GET, READABLE), (Action.PUT, WRITABLE), (Action.DELETE, WRITABLE)]
)
def test_a_shard_on_the_move_is_served_in_the_phases_in_which_its_owner_may(phase, action, served):
    """Law L2: and where the owner may not, the operation waits where it is, without a hop."""
    table = in_phase(phase)
    at_owner, elsewhere = (
        verdict("fra", "DE", action=action, table=table),
        verdict("ams", "DE", action=action, table=table),
    )
    if phase in served:
        assert isinstance(at_owner, Serve)
        assert isinstance(elsewhere, Forward)
    else:
        assert isinstance(at_owner, Hold)
        assert isinstance(elsewhere, Hold)
        assert {at_owner.reason, elsewhere.reason} == {phase.value}
        assert phase.value in (OPENING, DRAINING, CLOSING)


def test_what_a_peer_has_forwarded_does_not_wait_where_the_shard_is_not():
    found = verdict("ams", "DE", ingress="fra", action=Action.PUT, table=in_phase(Phase.CLOSING))
    assert isinstance(found, Redirect)
    waiting = verdict("fra", "DE", ingress="ams", action=Action.PUT, table=in_phase(Phase.DRAINING))
    assert isinstance(waiting, Hold)


def test_where_transit_is_forbidden_the_caller_is_sent_to_the_owner_even_of_a_shard_on_the_move():
    assert isinstance(verdict("fra", "CN", purpose="audit", table=in_phase(Phase.CLOSING, "CN")), Redirect)


def test_a_shard_on_the_move_is_still_denied_to_whom_it_is_denied():
    assert isinstance(verdict("sin", "DE", table=in_phase(Phase.CLOSING)), Deny)


IDCS = tuple(LAW.idcs)
CALLS = {
    "idc": st.sampled_from(IDCS),
    "region_code": st.sampled_from(["DE", "FR", "CN", "SG", "XX"]),
    "action": st.sampled_from(Action),
    "purpose": st.sampled_from(["", "support", "entry", "audit", "other"]),
    "ingress": st.sampled_from(["", *IDCS, "nowhere"]),
    "origin": st.sampled_from(["", *IDCS, "nowhere"]),
}


@given(**CALLS)
def test_without_a_fresh_table_only_what_stays_inside_the_own_jurisdiction_is_done(**call):
    """Law L6: who asks, who owns and who serves are all under one law."""
    found = verdict(**call, is_fresh=False)
    asking = asking_side(call["idc"], CallContext(0.0, "", call["origin"], call["ingress"]))
    owner = routing.OWNERS.get(call["region_code"], "")
    jurisdictions = {LAW.idcs.get(idc) for idc in (*asking.askers, owner, call["idc"])}
    if len(jurisdictions) == 1:
        assert isinstance(found, Serve if owner == call["idc"] else Forward | Redirect)
        assert isinstance(found, Redirect) or not found.is_guarded
    else:
        assert isinstance(found, Deny)
        assert isinstance(found.error, TableTooOld)


@given(**CALLS)
def test_nothing_is_done_that_any_of_the_askers_may_not_do(**call):
    """Laws L1 and L8: the verdict never allows more than the policy does for each asker alone."""
    found = verdict(**call)
    asking = asking_side(call["idc"], CallContext(0.0, call["purpose"], call["origin"], call["ingress"]))
    if isinstance(found, Serve | Forward | Redirect):
        for asker in asking.askers:
            alone = verdict(**call | {"idc": routing.OWNERS[call["region_code"]], "ingress": asker, "origin": ""})
            assert isinstance(alone, Serve | Redirect), "each asker alone is allowed"
            assert alone.decision.withheld <= found.decision.withheld
        assert found.route.idc == routing.OWNERS[call["region_code"]]
    if isinstance(found, Serve):
        assert found.route.idc == call["idc"]
        if found.decision.crosses_border:
            assert found.is_guarded
    if isinstance(found, Forward):
        assert not call["ingress"], "one hop"


STRICTER = routing.policy(POLICY.replace("purposes: [support]", "purposes: [legal]"), 2)
HIDING = routing.policy(POLICY.replace("spend: {type: int64}", "spend: {type: int64, class: personal}"), 2)
ASKING = Asking("fra", ("sin",), "support", has_hopped=True)


@pytest.mark.parametrize(
    ("newest", "is_fresh", "error"),
    [(TABLE, False, TableTooOld), (None, True, TableTooOld), (routing.table(STRICTER), True, AccessDenied)],
    ids=["not fresh", "no policy any more", "denied now"],
)
def test_a_guarded_verdict_falls_when_the_law_has_moved_on(newest, is_fresh, error):
    """Law L6."""
    crossing = operation("DE")
    served = judge(TABLE, crossing, ASKING, is_fresh=True)
    assert isinstance(served, Serve)
    now = still_stands(served.decision, LAW, newest, crossing, ASKING, is_fresh=is_fresh)
    assert isinstance(now, Deny)
    assert isinstance(now.error, error)


def test_a_guarded_verdict_that_stands_withholds_what_the_newest_law_withholds():
    """Law L6."""
    crossing = operation("DE")
    served = judge(TABLE, crossing, ASKING, is_fresh=True)
    assert isinstance(served, Serve)
    assert still_stands(served.decision, LAW, TABLE, crossing, ASKING, is_fresh=True) is served.decision
    now = still_stands(served.decision, LAW, routing.table(HIDING), crossing, ASKING, is_fresh=True)
    assert not isinstance(now, Deny)
    assert (now.withheld, now.policy_revision) == ({"name", "spend"}, 2)


SCATTERED = RoutingTable.build(
    LAW,
    [
        ("DE", 0, ShardRecord("fra", 1, Phase.SERVING, 1)),
        ("DE", 1, ShardRecord("ams", 1, Phase.SERVING, 1)),
        ("DE", 2, ShardRecord("fra", 1, Phase.OPENING, 1)),
        ("SG", 0, ShardRecord("sin", 1, Phase.SERVING, 1)),
        ("SG", 1, ShardRecord("sin", 2, Phase.SERVING, 1)),
    ],
    10,
)
"""Shards of one RegionCode that are owned by two IDCs, opening, or nobody's."""

OPERATIONS = st.builds(
    RowOperation,
    st.sampled_from(Action),
    st.sampled_from([LAW.datasets["customers"], LAW.datasets["counters"]]),
    st.sampled_from(["DE", "SG", "CN", "XX", ""]),
    st.one_of(st.sampled_from(["a", "b", "c", "d", "e", "\ud800"]), st.integers(-9, 9)),
)


@given(
    st.lists(OPERATIONS, max_size=12),
    st.sampled_from(["fra", "sin"]),
    st.sampled_from(["", "support", "entry"]),
    st.sampled_from(["", "sin", "lon"]),
    st.booleans(),
)
def test_what_is_judged_together_is_judged_as_each_alone_would_be(operations, idc, purpose, origin, is_fresh):
    asking = asking_side(idc, CallContext(0.0, purpose, origin))
    together: dict[int, object] = {}
    for found, indices in judge_all(SCATTERED, operations, range(len(operations)), asking, is_fresh=is_fresh):
        for index in indices:
            assert index not in together
            together[index] = found
    for index, operation in enumerate(operations):
        alone = judge(SCATTERED, operation, asking, is_fresh=is_fresh)
        assert _told(together.pop(index)) == _told(alone)
    assert not together


def _told(found) -> object:
    """A verdict without the identity of its error."""
    if isinstance(found, Deny):
        return found.error.reason, str(found.error), found.decision
    return found
