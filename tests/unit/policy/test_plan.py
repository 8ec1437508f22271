import pytest

from policy.intent import Standing, WantedMove
from policy.loading import load_policy
from policy.plan import make_plan
from policy.records import PlannedMove
from tests.unit.policy.documents import POLICY, bend, compiled


def _owners(plan):
    return {(move.region_code, move.shard): move.to_idc for move in plan.assigned}


CURRENT = compiled()
OWNERS = _owners(make_plan(None, Standing(), CURRENT))


def _plan(*changes, owners=OWNERS, wanted=None, drained=(), rebalance=False):
    text = bend(*changes)
    loaded = load_policy(text, "p.yaml")
    standing = Standing(owners, wanted or {}, frozenset(drained))
    return make_plan(CURRENT, standing, compiled(text, 8), loaded, rebalance=rebalance)


def _ordered(plan, rollout="r1", without=()):
    """The plan's moves, as a rollout that is under way wants them."""
    return {move.key: WantedMove(rollout, PlannedMove(*move)) for move in plan.moved if move.key not in without}


def test_the_first_plan_assigns_every_shard_within_the_law_l1():
    plan = make_plan(None, Standing(), CURRENT)
    assert len(plan.assigned) == sum(rule.shards for rule in CURRENT.regions.values())
    for move in plan.assigned:
        assert CURRENT.idcs[move.to_idc] in CURRENT.regions[move.region_code].jurisdictions
    assert plan.moved == ()
    assert plan.is_possible


def test_the_same_policy_changes_nothing():
    plan = make_plan(CURRENT, Standing(OWNERS), compiled(revision=8))
    assert not any((plan.assigned, plan.moved, plan.schema_changes, plan.access_changes, plan.findings))


def test_first_owners_that_are_still_being_assigned_are_nothing_new():
    some = dict(list(OWNERS.items())[::2])
    plan = make_plan(CURRENT, Standing(some), CURRENT)
    assert (plan.assigned, plan.moved) == ((), ())


def test_a_plan_that_does_something_takes_over_the_first_owners_that_are_still_to_be_assigned():
    some = dict(list(OWNERS.items())[::2])
    plan = _plan(("[SG, MY]", "[SG, MY, JP]"), owners=some)
    assert {shard: idc for shard, idc in {**some, **_owners(plan)}.items() if shard[0] != "JP"} == OWNERS


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
    plan = make_plan(CURRENT, Standing(), compiled(bend(("shards: 8", "shards: 9")), 8))
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
    told = make_plan(CURRENT, Standing(OWNERS), compiled(text, 8)).access_changes
    assert sentence in [change.sentence for change in told]
    assert all(change.example for change in told)


def test_a_new_order_of_rules_without_effect_is_no_change():
    lines = POLICY.splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "eu-support" in line)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    assert make_plan(CURRENT, Standing(OWNERS), compiled("".join(lines), 8)).access_changes == ()


EXAMPLES = {
    "a purpose is added": (
        ("purposes: [support]", "purposes: [support, audit]"),
        "sin asks to read customers of AT for audit: allowed by eu-support without name; was denied by europe",
    ),
    "the law widens": (
        ("jurisdictions: [CN]", "jurisdictions: [CN, SG]"),
        "rows of CN may lie in sha or sin; could lie in sha",
    ),
    "transit ends": (
        ("shards: 8", "shards: 8, transit: forbid"),
        "a gateway elsewhere that is asked for a row of AT only tells who the owner is",
    ),
}


@pytest.mark.parametrize(("change", "example"), EXAMPLES.values(), ids=EXAMPLES)
def test_each_change_comes_with_a_concrete_case(change, example):
    text = bend(change, text=POLICY.split("expect:")[0])
    told = make_plan(CURRENT, Standing(OWNERS), compiled(text, 8)).access_changes
    assert example in [change.example for change in told]


EU_IN_SG = ("jurisdictions: [EU], idcs: {fra: 60, ams: 40}", "jurisdictions: [SG], idcs: {sin: 1}")


def _lawless(*changes):
    return bend(*changes, text=POLICY.split("expect:")[0])


def test_moves_that_the_law_demands_come_first_then_by_region_code_and_shard():
    text = _lawless(("jurisdictions: [CN], idcs: {sha: 100}", "jurisdictions: [SG], idcs: {sin: 1}"),
                    ("fra: 60, ams: 40", "fra: 50, ams: 50"))  # fmt: skip
    moved = make_plan(CURRENT, Standing(OWNERS), compiled(text, 8)).moved
    assert [move.region_code for move in moved] == ["CN"] * 16 + ["AT", "DE", "FI", "NO", "SE"]
    assert [move.required_by_law for move in moved] == [True] * 16 + [False] * 5
    assert [move.shard for move in moved[:16]] == list(range(16))


def test_idcs_that_start_and_stop_to_hold_a_region_code_are_told():
    text = _lawless(EU_IN_SG)
    changes = make_plan(CURRENT, Standing(OWNERS), compiled(text, 8)).holding_changes
    assert changes[0] == ("AT", ("sin",), ("ams", "fra"))
    assert len(changes) == 5


def test_a_manual_move_stays_when_the_rule_of_its_region_code_is_the_same():
    assert OWNERS["DE", 7] == "fra"
    owners = {**OWNERS, ("DE", 7): "ams"}
    assert _plan(("purposes: [support]", "purposes: [support, audit]"), owners=owners).moved == ()
    assert [move.region_code for move in _plan(("sha: 100", "sha: 99"), owners=owners).moved] == []
    assert [move.region_code for move in _plan(owners=owners, rebalance=True).moved] == ["DE"]


def test_a_change_of_access_rules_leaves_a_rollout_that_is_under_way_alone():
    begun = _plan(("fra: 60, ams: 40", "fra: 50, ams: 50"))
    current = compiled(bend(("fra: 60, ams: 40", "fra: 50, ams: 50")), 8)
    new = compiled(bend(("fra: 60, ams: 40", "fra: 50, ams: 50"), ("purposes: [support]", "purposes: [audit]"),
                        text=POLICY.split("expect:")[0]), 9)  # fmt: skip
    plan = make_plan(current, Standing(OWNERS, _ordered(begun)), new)
    assert plan.access_changes
    assert (plan.moved, plan.holding_changes) == ((), ())


def test_a_plan_that_does_something_takes_over_what_is_under_way():
    begun = _plan(("fra: 60, ams: 40", "fra: 50, ams: 50"))
    current = compiled(bend(("fra: 60, ams: 40", "fra: 50, ams: 50")), 8)
    new = compiled(bend(("fra: 60, ams: 40", "fra: 50, ams: 50"), ("[SG, MY]", "[SG, MY, JP]")), 9)
    plan = make_plan(current, Standing(OWNERS, _ordered(begun)), new)
    assert plan.moved == begun.moved
    assert {move.region_code for move in plan.assigned} == {"JP"}


def test_going_back_in_the_middle_of_a_rollout_moves_only_what_has_switched():
    begun = _plan(("fra: 60, ams: 40", "fra: 50, ams: 50"))
    switched = begun.moved[:2]
    owners = {**OWNERS, **{move.key: move.to_idc for move in switched}}
    wanted = _ordered(begun, without={move.key for move in switched})
    current = compiled(bend(("fra: 60, ams: 40", "fra: 50, ams: 50")), 8)
    plan = make_plan(current, Standing(owners, wanted), compiled(revision=9))
    assert len(plan.moved) == 2
    assert {move.region_code for move in plan.moved} == {move.region_code for move in switched}


def test_nothing_is_given_to_a_drained_idc_and_what_is_there_goes_to_the_others():
    plan = _plan(drained=["ams"])
    assert {(move.from_idc, move.to_idc) for move in plan.moved} == {("ams", "fra")}
    assert not any(move.required_by_law for move in plan.moved)
    assert {move.to_idc for move in _plan(("[AT, DE, NORDIC]", "[AT, DE, NORDIC, FR]"), drained=["ams"]).assigned} == {
        "fra"
    }


def test_with_all_weighted_idcs_drained_another_lawful_one_takes_over():
    current = compiled(bend(("fra: 60, ams: 40", "fra: 1")), 7)
    owners = _owners(make_plan(None, Standing(), current))
    plan = make_plan(current, Standing(owners, drained=frozenset({"fra"})), current)
    assert {(move.from_idc, move.to_idc) for move in plan.moved} == {("fra", "ams")}


def test_what_no_other_idc_may_have_stays_and_is_a_warning():
    plan = _plan(drained=["sha"])
    assert plan.is_possible
    assert plan.moved == ()
    (finding,) = plan.findings
    assert (finding.severity, finding.code, finding.path) == ("warning", "DRAINED", "residency[0].idcs")
    assert "16 shards of CN stay" in finding.message


def test_the_law_comes_before_a_drain():
    text = _lawless(EU_IN_SG)
    plan = make_plan(CURRENT, Standing(OWNERS, drained=frozenset({"sin"})), compiled(text, 8))
    moved = [move for move in plan.moved if move.region_code == "DE"]
    assert {(move.to_idc, move.required_by_law) for move in moved} == {("sin", True)}
    assert "DRAINED" in [finding.code for finding in plan.findings]


def test_a_move_towards_an_idc_that_is_drained_meanwhile_is_not_wanted_any_more():
    wanted = {("DE", 7): WantedMove("m1", PlannedMove("DE", 7, "fra", "ams"))}
    plan = _plan(wanted=wanted, drained=["ams"])
    assert [move.shard for move in plan.moved if move.region_code == "DE"] == [0, 1, 2]


def test_an_idc_that_comes_under_another_law_loses_what_it_may_not_hold():
    text = _lawless(("ams: {jurisdiction: EU}", "ams: {jurisdiction: SG}"), ("fra: 60, ams: 40", "fra: 60"))
    plan = make_plan(CURRENT, Standing(OWNERS), compiled(text, 8))
    assert {(move.from_idc, move.to_idc, move.required_by_law) for move in plan.moved} == {("ams", "fra", True)}


def test_the_fingerprint_stands_for_all_that_would_be_done():
    plan = _plan(("fra: 60, ams: 40", "fra: 50, ams: 50"))
    again = _plan(("fra: 60, ams: 40", "fra: 50, ams: 50"))
    assert plan.fingerprint(7, "text") == again.fingerprint(7, "text")
    others = {
        plan.fingerprint(8, "text"),
        plan.fingerprint(7, "texts"),
        _plan(("fra: 60, ams: 40", "fra: 40, ams: 60")).fingerprint(7, "text"),
        _plan().fingerprint(7, "text"),
    }
    assert plan.fingerprint(7, "text") not in others
    assert len(others) >= 3
