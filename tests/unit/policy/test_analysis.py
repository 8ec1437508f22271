import pytest

from tests.unit.policy.documents import POLICY, bend, codes_of, findings_of

ERRORS = {
    "a group is named like a country": (("groups:", "groups:\n  IN: [SG]"), "GROUP_NAME"),
    "a group holds itself": (("FI, NO", "EU, NO"), "GROUP_CYCLE"),
    "a member is neither group nor code": (("FI, NO", "Finland, NO"), "UNKNOWN_REGION"),
    "a code is under two rules": (("[SG, MY]", "[SG, SE]"), "OVERLAP"),
    "a code is twice in one rule": (("[SG, MY]", "[SG, SG]"), "OVERLAP"),
    "two rules share a name": (("name: asia,", "name: eu-support,"), "RULE_NAME"),
    "an IDC is unknown": (("sin: 100", "syd: 100"), "UNKNOWN_IDC"),
    "a weight is on a forbidden IDC": (("sin: 100", "sin: 90, fra: 10"), "FORBIDDEN_IDC"),
    "no weight is above 0": (("sin: 100", "sin: 0"), "NO_WEIGHT"),
    "an asker's jurisdiction is unknown": (("from: [SG]", "from: [US]"), "UNKNOWN_JURISDICTION"),
    "an access rule's dataset is unknown": (("[orders]", "[order]"), "UNKNOWN_DATASET"),
    "a write withholds": (("[read], purposes: [sup", "[write], purposes: [sup"), "WITHHOLD_ON_WRITE"),
    "an expectation is of two forms": (("never_stored_in: [EU, SG]", "never_stored_in: [EU], from: SG"), "EXPECT_FORM"),
    "an expectation is of no form": ((", never_stored_in: [EU, SG]", ", from: SG"), "EXPECT_FORM"),
    "an expectation's column is unknown": (("withheld: [name]", "withheld: [names]"), "UNKNOWN_COLUMN"),
    "an expectation's code is uncovered": (("{region: CN, never", "{region: US, never"), "UNCOVERED"),
    "an expectation fails": (("withheld: [name]", "withheld: []"), "EXPECT_FAILED"),
    "an expectation names another rule": (("withheld: [name]", "rule: europe"), "EXPECT_FAILED"),
    "a storage expectation fails": (("{region: CN, never", "{region: DE, never"), "EXPECT_FAILED"),
}  # fmt: skip

WARNINGS = {
    "a group's member is uncovered": (("groups:", "groups:\n  LATER: [JP]"), "UNCOVERED"),
    "an access rule's code is uncovered": (("regions: [SG], from", "regions: [SG, JP], from"), "UNCOVERED"),
    "a code is no country": (("[SG, MY]", "[SG, EN]"), "UNKNOWN_COUNTRY"),
    "a jurisdiction has no IDC": (("jurisdictions: [SG]", "jurisdictions: [SG, US]"), "UNKNOWN_JURISDICTION"),
    "a weight of 0 is on a forbidden IDC": (("sin: 100", "sin: 1, fra: 0"), "FORBIDDEN_IDC"),
    "no column has the class": (("withhold: [personal]", "withhold: [personal, persona]"), "UNKNOWN_CLASS"),
    "a group is empty": (("groups:", "groups:\n  NONE: []"), "GROUP_EMPTY"),
}


@pytest.mark.parametrize(("change", "code"), ERRORS.values(), ids=ERRORS)
def test_contradictions_are_errors(change, code):
    assert codes_of(bend(change)) == [code]


@pytest.mark.parametrize(("change", "code"), WARNINGS.values(), ids=WARNINGS)
def test_what_is_hardly_meant_is_a_warning(change, code):
    assert code in codes_of(bend(change), "warning")
    assert codes_of(bend(change)) == []


def test_one_circle_of_groups_is_told_once():
    assert codes_of(bend(("groups:", "groups:\n  A: [B]\n  B: [C]\n  C: [B]"))) == ["GROUP_CYCLE"]


def test_groups_too_deep_in_each_other_are_refused():
    deep = "".join(f"  G{n}: [G{n + 1}]\n" for n in range(60)) + "  G60: [JP]\n"
    assert set(codes_of(bend(("groups:\n", "groups:\n" + deep)))) == {"GROUP_DEPTH"}


def test_a_broken_part_is_not_blamed_on_those_who_refer_to_it():
    broken = bend(("sin: {jurisdiction: SG}", "sin: {jurisdiction: 5}"), ("NORDIC: [FI", "NORDIC: [5, FI"))
    assert codes_of(broken) == ["SCHEMA", "SCHEMA"]


def test_an_overlap_names_both_rules_and_the_codes():
    (finding,) = [f for f in findings_of(bend(("[SG, MY]", "[SG, NORDIC]"))) if f.severity == "error"]
    assert "FI, NO and SE are under rule europe already" in finding.message
    assert finding.path == "residency[2].regions[1]"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("regions: [DE], from: [SG], operations: [read], purposes: [support]", "eu-support before it decides all"),
        ("regions: [DE], from: [EU], operations: [read], purposes: ['*']", "are at home"),
        ("regions: [JP], from: [EU], operations: [read], purposes: ['*']", "no residency rule covers"),
    ],
)
def test_an_access_rule_that_never_decides_is_told_why(rule, reason):
    text = bend(("datasets:\n  customers", f"  - {{name: idle, {rule}}}\ndatasets:\n  customers"))
    (finding,) = [f for f in findings_of(text) if f.code == "UNREACHABLE_RULE"]
    assert reason in finding.message
    assert finding.path == "access[2]"


@pytest.mark.parametrize("purposes", ["[audit]", "['*']", "[support, audit]"])
def test_an_access_rule_that_adds_a_purpose_is_reached(purposes):
    rule = f"  - {{name: more, regions: [DE], from: [SG], operations: [read], purposes: {purposes}}}\n"
    assert codes_of(bend(("datasets:\n  customers", f"{rule}datasets:\n  customers")), "warning") == []


def test_the_loss_of_each_idc_is_told():
    messages = [finding.message for finding in findings_of(POLICY) if finding.code == "IDC_LOSS"]
    assert messages == [
        "loss of sha leaves china no lawful IDC",
        "loss of fra leaves ams for europe",
        "loss of ams leaves fra for europe",
        "loss of sin leaves asia no lawful IDC",
    ]


def test_an_idc_without_weight_is_told():
    assert "IDC_IDLE" in codes_of(bend(("groups:", "  syd: {jurisdiction: AU}\ngroups:")), "info")
