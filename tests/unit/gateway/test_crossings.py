"""What counts as a crossing, by what it is counted, and that the number of counters is bounded."""

from __future__ import annotations

from gateway.crossings import Asked, Crossing, Crossings, named_purpose
from gateway.operations import Action, OperationOutcome, RowOperation
from policy.errors import AccessDenied, NotOwnedHere, PeerUnreachable, RowNotFound, TableTooOld
from policy.model import Operation
from tests.support import routing

LAW = routing.policy()
CUSTOMERS = LAW.datasets["customers"]


def decide(idc="sin", code="DE", operation=Operation.READ, purpose="support"):
    return LAW.decide("customers", code, (idc,), operation, purpose)


ABROAD, REFUSED, HOME = decide(), decide(purpose=""), decide("fra")
ASKED = Asked("DE", Operation.READ, "support")
PERMITTED = Crossing("eu-support", 1, "SG", "DE", "read", "support", "permitted", withheld=True)


def counted(decision, error=None):
    crossings = Crossings()
    crossings.count(decision, ASKED, error)
    return crossings.take()[0]


def test_a_crossing_is_counted_by_rule_whatever_became_of_the_row():
    for error in (None, RowNotFound("no"), PeerUnreachable("no")):
        assert counted(ABROAD, error) == {PERMITTED: 1}


def test_a_denial_is_counted_by_the_rule_that_denies_here_or_at_the_owner():
    here = AccessDenied("no", rule="europe", policy_revision=1)
    assert counted(REFUSED, here) == {PERMITTED._replace(rule="europe", outcome="refused", withheld=False): 1}
    newer = AccessDenied("no", rule="eu-new", policy_revision=2)
    refused = PERMITTED._replace(rule="eu-new", policy_revision=2, outcome="refused", withheld=False)
    assert counted(ABROAD, newer) == {refused: 1}


def test_what_is_refused_for_want_of_a_fresh_law_says_so():
    assert counted(ABROAD, TableTooOld("old")) == {PERMITTED._replace(outcome="law unknown", withheld=False): 1}


def test_what_is_sent_on_is_counted_where_it_goes():
    assert counted(ABROAD, NotOwnedHere("there")) == {}


def test_of_many_outcomes_only_those_that_cross_are_counted():
    crossings = Crossings()
    operation = RowOperation(Action.GET, CUSTOMERS, "DE", "k")
    outcomes = [OperationOutcome(decision=HOME)] * 5 + [OperationOutcome(decision=ABROAD)] * 3 + [OperationOutcome()]
    crossings.count_outcomes(LAW, "support", [(operation, outcome) for outcome in outcomes])
    assert crossings.take() == ({PERMITTED: 3}, 0)
    assert crossings.take() == ({}, 0)


def test_only_words_of_the_policy_name_a_counter():
    assert named_purpose(LAW, "support") == "support"
    assert named_purpose(LAW, "") == ""
    assert named_purpose(LAW, "somebody's name") == "other"
    assert named_purpose(None, "support") == "other"


def test_above_the_most_counters_crossings_are_still_counted_together():
    crossings = Crossings(max_counters=2)
    for purpose in ("a", "b", "c", "d", "a"):
        crossings.count(ABROAD, ASKED._replace(purpose=purpose), None)
    counts, overflow = crossings.take()
    assert sorted((crossing.purpose, number) for crossing, number in counts.items()) == [("a", 2), ("b", 1)]
    assert overflow == 2
