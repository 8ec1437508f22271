import pytest

from policy.loading import load_policy
from policy.plan import make_plan
from tests.unit.policy.documents import POLICY, bend, compiled


def _owners(plan):
    return {(move.region_code, move.shard): move.to_idc for move in plan.assigned}


CURRENT = compiled()
OWNERS = _owners(make_plan(None, {}, CURRENT))


def _plan(*changes):
    text = bend(*changes)
    loaded = load_policy(text, "p.yaml")
    return make_plan(CURRENT, OWNERS, compiled(text, 8), loaded)


def test_the_first_plan_assigns_every_shard_within_the_law_l1():
    plan = make_plan(None, {}, CURRENT)
    assert len(plan.assigned) == sum(rule.shards for rule in CURRENT.regions.values())
    for move in plan.assigned:
        assert CURRENT.idcs[move.to_idc] in CURRENT.regions[move.region_code].jurisdictions
    assert plan.moved == ()
    assert plan.is_possible


def test_the_same_policy_changes_nothing():
    plan = make_plan(CURRENT, OWNERS, compiled(revision=8))
    assert not any((plan.assigned, plan.moved, plan.schema_changes, plan.access_changes, plan.findings))


def test_an_interrupted_rollout_is_planned_on_from_where_it_is():
    some = dict(list(OWNERS.items())[::2])
    assert {**some, **_owners(make_plan(CURRENT, some, CURRENT))} == OWNERS


def test_other_weights_move_the_fewest_shards():
    plan = _plan(("fra: 60, ams: 40", "fra: 50, ams: 50"))
    assert {(move.from_idc, move.to_idc) for move in plan.moved} == {("fra", "ams")}
    assert len(plan.moved) == 5  # one of eight for each of AT, DE, FI, NO and SE


def test_a_new_region_code_is_assigned():
    plan = _plan(("[SG, MY]", "[SG, MY, JP]"))
    assert {move.region_code for move in plan.assigned} == {"JP"}


REFUSED = {
    "a used code left uncovered": ([("[SG, MY]", "[SG]")], "UNCOVERED_IN_USE", "residency"),
    "other shards": ([("shards: 8", "shards: 9")], "SHARDS_FIXED", "residency[1].shards"),
    "other shards by another rule": ([("[FI, NO, SE]", "[NO, SE]"), ("MY]", "MY, FI]")], "SHARDS_FIXED", ""),
    "another type": ([("{type: int64}", "{type: double}")], "SCHEMA_CHANGE", "datasets.customers.columns.spend.type"),
    "another key": ([("key: int64", "key: string")], "SCHEMA_CHANGE", "datasets.orders.key"),
    "a lost column": ([("      spend: {type: int64}\n", "")], "SCHEMA_CHANGE", "datasets.customers.columns.spend"),
    "a lost dataset": ([("  orders:\n    key: int64\n    columns:\n      total: {type: decimal}\n", ""),
                        (", datasets: [orders]", "")], "SCHEMA_CHANGE", "datasets.orders"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "code", "path"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_a_finding_with_its_place(changes, code, path):
    plan = _plan(*changes)
    assert not plan.is_possible
    (finding,) = plan.findings
    assert finding.code == code
    assert finding.path.startswith(path)
    assert finding.line > 1


def test_shards_are_fixed_also_while_the_first_rollout_is_still_assigning_them():
    plan = make_plan(CURRENT, {}, compiled(bend(("shards: 8", "shards: 9")), 8))
    assert [finding.code for finding in plan.findings] == ["SHARDS_FIXED"]


def test_fixed_shards_come_with_a_hint():
    assert "write `shards: 8`" in _plan(("shards: 8", "shards: 9")).findings[0].message


def test_new_datasets_and_columns_are_schema_changes():
    plan = _plan(("expect:", "  carts:\n    key: string\n    columns: {size: {type: int64}}\nexpect:"),
                 ("      total:", "      note: {type: string}\n      total:"))  # fmt: skip
    assert plan.schema_changes == ("orders.note", "carts", "carts.size")


SUPPORT = "from SG, read of customers in EU for purpose support"
ACCESS = {
    "a purpose is added": (
        ("purposes: [support]", "purposes: [support, audit]"),
        "from SG, read of customers in EU for purpose audit: allowed by eu-support without name, was denied",
    ),
    "nothing is withheld any more": (
        (", withhold: [personal]}", "}"),
        f"{SUPPORT}: allowed by eu-support, was allowed by eu-support without name",
    ),
    "a jurisdiction loses access": (
        ("from: [EU, CN]", "from: [EU]"),
        "from CN, read of orders in SG for any purpose: denied, was allowed by asia-billing",
    ),
    "the law widens": (("jurisdictions: [CN]", "jurisdictions: [CN, SG]"), "CN may be stored in CN and SG, was CN"),
    "transit ends": (("shards: 8", "shards: 8, transit: forbid"), "EU may no longer pass through other jurisdictions"),
    "a column changes class": (
        ("spend: {type: int64}", "spend: {type: int64, class: personal}"),
        f"{SUPPORT}: allowed by eu-support without name and spend, was allowed by eu-support without name",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), ACCESS.values(), ids=ACCESS)
def test_changes_of_access_are_told_by_their_effect(change, sentence):
    text = bend(change, text=POLICY.split("expect:")[0])
    assert sentence in make_plan(CURRENT, OWNERS, compiled(text, 8)).access_changes


def test_a_new_order_of_rules_without_effect_is_no_change():
    lines = POLICY.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "eu-support" in line)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    assert make_plan(CURRENT, OWNERS, compiled("".join(lines), 8)).access_changes == ()
