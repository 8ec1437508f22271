import pytest

from policy.compile import MAX_REMEMBERED, compile_policy
from policy.document import PolicyDocument
from policy.errors import PolicyRejected, UnknownDataset, UnknownRegion
from policy.loading import load_policy
from policy.model import Operation
from tests.unit.policy.documents import POLICY, bend, compiled

READ, WRITE = Operation.READ, Operation.WRITE


def test_at_home_everything_is_allowed_by_the_residency_rule():
    decision = compiled().decide("customers", "DE", ("ams",), WRITE, "anything")
    assert (decision.allowed, decision.rule, decision.crosses_border) == (True, "europe", False)
    assert (decision.policy_revision, decision.asking_jurisdiction, decision.withheld) == (7, "EU", frozenset())


def test_across_a_border_nothing_is_allowed_without_a_rule_l8():
    decision = compiled().decide("customers", "CN", ("sin",), READ, "support")
    assert (decision.allowed, decision.rule, decision.crosses_border) == (False, "china", True)
    assert "keeps it in CN" in decision.reason


def test_an_access_rule_allows_its_purpose_only_and_withholds_by_class():
    policy = compiled()
    allowed = policy.decide("customers", "DE", ("sin",), READ, "support")
    assert (allowed.allowed, allowed.rule, allowed.withheld) == (True, "eu-support", {"name"})
    assert not policy.decide("customers", "DE", ("sin",), READ, "").allowed
    assert not policy.decide("customers", "DE", ("sin",), READ, "*").allowed
    assert not policy.decide("customers", "DE", ("sin",), WRITE, "support").allowed
    assert not policy.decide("customers", "DE", ("sha",), READ, "support").allowed


def test_a_rule_for_any_purpose_needs_none_and_keeps_to_its_datasets():
    policy = compiled()
    assert policy.decide("orders", "SG", ("fra",), WRITE, "").rule == "asia-billing"
    assert policy.decide("orders", "SG", ("fra",), WRITE, "whatever").allowed
    assert not policy.decide("customers", "SG", ("fra",), WRITE, "").allowed


def test_the_first_rule_that_fits_decides():
    first = "  - {name: first, regions: [DE], from: [SG], operations: [read], purposes: [support]}\n"
    policy = compiled(bend(("access:\n", f"access:\n{first}"), text=POLICY.split("expect:")[0]))
    assert policy.decide("customers", "DE", ("sin",), READ, "support").withheld == frozenset()
    assert policy.decide("customers", "AT", ("sin",), READ, "support").withheld == {"name"}


def test_every_asker_must_be_allowed_and_the_border_speaks():
    policy = compiled()
    both = policy.decide("customers", "DE", ("fra", "sin"), READ, "support")
    assert (both.allowed, both.rule, both.withheld, both.asking_jurisdiction) == (True, "eu-support", {"name"}, "SG")
    assert not policy.decide("customers", "DE", ("fra", "sin"), READ, "").allowed
    assert not policy.decide("customers", "DE", ("fra", "sha"), READ, "support").allowed


def test_what_is_withheld_from_one_asker_is_withheld_l1():
    rule = "  - {name: audit, regions: [DE], from: [CN], operations: [read], purposes: [support], withhold: [money]}\n"
    text = bend(("access:\n", f"access:\n{rule}"), ("spend: {type: int64}", "spend: {type: int64, class: money}"))
    both = compiled(text).decide("customers", "DE", ("sin", "sha"), READ, "support")
    assert (both.rule, both.withheld) == ("eu-support", {"name", "spend"})


@pytest.mark.parametrize("askers", [(), ("mars",), ("fra", "mars"), ("",)])
def test_an_asker_that_the_policy_does_not_know_is_denied_l8(askers):
    decision = compiled().decide("customers", "DE", askers, READ, "support")
    assert not decision.allowed
    assert decision.crosses_border


def test_unknown_names_are_errors_that_repeat_nothing_but_region_codes_l1():
    policy = compiled()
    with pytest.raises(UnknownRegion, match="JP"):
        policy.decide("customers", "JP", ("fra",), READ, "")
    with pytest.raises(UnknownRegion) as raised:
        policy.decide("customers", "a-secret-key", ("fra",), READ, "")
    assert "secret" not in str(raised.value)
    with pytest.raises(UnknownDataset) as unknown:
        policy.decide("secret", "DE", ("fra",), READ, "")
    assert "secret" not in str(unknown.value)


def test_what_is_remembered_is_bounded_whatever_callers_state():
    policy = compiled()
    for number in range(1000):
        policy.decide("customers", "DE", ("sin",), READ, f"purpose-{number}")
        policy.decide("customers", "DE", (f"idc-{number}",), READ, "support")
        policy.decide("customers", "DE", ("sin",) * (number + 3), READ, "support")
    assert len(policy._remembered) == 1
    policy._remembered |= {("", str(n), (), READ, ""): policy.decide("orders", "DE", ("fra",), READ, "")
                           for n in range(MAX_REMEMBERED)}  # fmt: skip
    policy.decide("customers", "AT", ("fra",), READ, "")
    assert len(policy._remembered) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"MY"', '"DE"'),
        ('"sin":100', '"fra":1'),
        ('"sin":100', '"sin":0'),
        ('"regions":["EU"]', '"regions":["Europe"]'),
    ],
)
def test_a_document_that_skipped_the_checks_does_not_compile_l8(old, new):
    text = load_policy(POLICY).document.to_json()
    assert old in text
    with pytest.raises(PolicyRejected) as raised:
        compile_policy(PolicyDocument.from_json(text.replace(old, new)), 1)
    assert raised.value.findings
