"""Where shards are meant to be, for any policy, owners, drained IDCs and any moment of a rollout."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from policy.assignment import quotas
from policy.compile import compile_policy
from policy.document import PolicyDocument
from policy.intent import Standing, WantedMove, intended_owners, is_lawful, targets, usable_weights, wanted_moves
from policy.plan import make_plan, moves_to
from policy.records import PlannedMove, PlanRecord, RolloutRecord

LAWS = {"sha": "CN", "fra": "EU", "ams": "EU", "mad": "EU", "sin": "SG"}
CODES = ["DE", "FR", "SG"]


@st.composite
def _policies(draw, shards=None, revision=1):
    """A policy with a rule of its own for each RegionCode."""
    rules = []
    for code in CODES:
        jurisdictions = draw(st.lists(st.sampled_from(["CN", "EU", "SG"]), min_size=1, unique=True))
        lawful = [idc for idc, law in LAWS.items() if law in jurisdictions]
        weights = draw(st.dictionaries(st.sampled_from(lawful), st.integers(0, 5), min_size=1))
        assume(any(weights.values()))
        number = shards[code] if shards else draw(st.integers(1, 9))
        rules.append(
            {"name": f"rule-{code.lower()}", "regions": [code], "jurisdictions": jurisdictions, "idcs": weights,
             "shards": number}
        )  # fmt: skip
    idcs = {idc: {"jurisdiction": law} for idc, law in LAWS.items()}
    return _compiled(idcs, rules, revision)


def _compiled(idcs, rules, revision=1):
    datasets = {"customers": {"key": "string", "columns": {"spend": {"type": "int64"}}}}
    document = {"version": 1, "idcs": idcs, "residency": rules, "datasets": datasets}
    return compile_policy(PolicyDocument.from_json(json.dumps(document)), revision)


@st.composite
def _steps(draw):
    """A policy, lawful owners under it (any, as after moves by hand), another policy, and drained IDCs."""
    current = draw(_policies())
    new = draw(_policies({code: it.shards for code, it in current.regions.items()}, 2))
    owners = {}
    for code, residency in current.regions.items():
        lawful = [idc for idc in LAWS if is_lawful(current, residency, idc)]
        for number in range(residency.shards):
            owner = draw(st.sampled_from([*lawful, ""]))
            if owner:
                owners[code, number] = owner
    # A RegionCode keeps its rule now and then.
    kept = draw(st.sets(st.sampled_from(CODES)))
    new = _with_rules_of(current, new, kept)
    return current, owners, new, frozenset(draw(st.sets(st.sampled_from(list(LAWS)), max_size=3)))


def _with_rules_of(current, new, codes):
    rules = [
        (current if rule.regions[0] in codes else new).document.residency[number]
        for number, rule in enumerate(new.document.residency)
    ]
    return compile_policy(new.document.model_copy(update={"residency": tuple(rules)}), 2)


def _of(mapping, code):
    return {number: idc for (its, number), idc in mapping.items() if its == code}


@given(_steps())
def test_law_l1_nothing_unlawful_is_ever_meant(step):
    current, owners, new, drained = step
    meant, _ = targets(current, Standing(owners, drained=drained), new)
    assert set(meant) == {(code, n) for code, it in new.regions.items() for n in range(it.shards)}
    assert all(is_lawful(new, new.regions[code], idc) for (code, _), idc in meant.items())


@given(_steps())
def test_changed_region_codes_come_to_exactly_the_quotas_of_their_weights_with_the_fewest_moves(step):
    current, owners, new, drained = step
    meant, _ = targets(current, Standing(owners, drained=drained), new, rebalance=True)
    for code, residency in new.regions.items():
        weights = usable_weights(new, residency, drained)
        if weights:
            here = _of(owners, code)
            wanted = quotas(weights, residency.shards, here)
            assert Counter(_of(meant, code).values()) == Counter({idc: n for idc, n in wanted.items() if n})
            held = Counter(here.values())
            stays = sum(idc == meant[code, number] for number, idc in here.items())
            assert stays == sum(min(held[idc], wanted[idc]) for idc in wanted)


@given(_steps())
def test_region_codes_with_the_same_residency_stay_untouched_where_nothing_is_drained(step):
    current, owners, new, _ = step
    meant, stuck = targets(current, Standing(owners), new)
    before = intended_owners(current, owners)
    for code, residency in new.regions.items():
        old = current.regions[code]
        if (old.jurisdictions, old.weights, old.shards) == (residency.jurisdictions, residency.weights, old.shards):
            assert _of(meant, code) == _of(before, code)
    assert stuck == []


@given(_steps())
def test_only_what_lies_in_a_drained_idc_leaves_it_and_only_what_no_other_may_have_stays(step):
    current, owners, _, drained = step
    before = intended_owners(current, owners, drained)
    meant, stuck = targets(current, Standing(owners, drained=drained), current)
    for shard, idc in meant.items():
        if before[shard] not in drained:
            assert idc == before[shard]
        elif usable_weights(current, current.regions[shard[0]], drained):
            assert idc not in drained
        else:
            assert idc == before[shard]
            assert shard in stuck


@given(_steps(), st.data())
def test_planning_again_in_the_middle_of_a_rollout_comes_to_the_same_owners(step, data):
    current, owners, new, drained = step
    assigned = intended_owners(new, owners, drained)
    meant, _ = targets(current, Standing(owners, drained=drained), new)
    moves = moves_to(Standing(owners), meant, new)
    switched = data.draw(st.sets(st.sampled_from([move.key for move in moves]))) if moves else set()
    has_assigned = data.draw(st.booleans())
    now = {
        **(assigned if has_assigned else owners),
        **{move.key: move.to_idc for move in moves if move.key in switched},
    }
    wanted = {m.key: WantedMove("r1", PlannedMove(*m)) for m in moves if m.key not in switched}
    again, _ = targets(current, Standing(now, wanted, drained), new)
    spread, _ = targets(None, Standing(now, wanted, drained), new)
    once_more, _ = targets(new, Standing(now, wanted, drained), new)
    for code, residency in new.regions.items():
        if usable_weights(new, residency, drained) and not _is_same(current, new, code):
            assert _of(again, code) == _of(spread, code) == _of(meant, code)
        assert _of(once_more, code) == _of(meant, code)


def _is_same(current, new, code):
    old, residency = current.regions[code], new.regions[code]
    return (old.jurisdictions, old.weights) == (residency.jurisdictions, residency.weights)


@given(_steps())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(step):
    current, owners, new, drained = step
    plan = make_plan(current, Standing(owners, drained=drained), new)
    after = {**intended_owners(new, owners, drained), **{move.key: move.to_idc for move in plan.moved}}
    rest = make_plan(new, Standing(after, drained=drained), new)
    assert (rest.assigned, rest.moved) == ((), ())


@given(_steps())
def test_first_owners_that_the_controller_gives_are_those_of_the_plan(step):
    current, owners, new, drained = step
    plan = make_plan(current, Standing(owners, drained=drained), new)
    given_by = intended_owners(new, owners, drained)
    assert all(given_by[move.key] == move.to_idc for move in plan.assigned)


def test_the_newest_order_for_a_shard_counts_and_what_is_cancelled_only_as_far_as_the_law_demands_it():
    plans = {
        "r1": PlanRecord("r1", (PlannedMove("DE", 0, "fra", "ams"), PlannedMove("DE", 1, "fra", "ams"))),
        "m2": PlanRecord("m2", (PlannedMove("DE", 0, "fra", "mad"),)),
        "r3": PlanRecord("r3", (PlannedMove("FR", 0, "sin", "fra", True), PlannedMove("FR", 1, "ams", "fra"))),
        "r4": PlanRecord("r4", (PlannedMove("SG", 0, "sin", "fra"),)),
    }
    states = {"r1": "running", "m2": "paused", "r3": "cancelling", "r4": "superseded"}
    rollouts = [RolloutRecord(rollout, 1, state, "") for rollout, state in states.items()]
    owners = {("DE", 0): "fra", ("DE", 1): "ams", ("FR", 0): "sin", ("FR", 1): "ams", ("SG", 0): "sin"}
    wanted = wanted_moves(rollouts, plans, owners)
    assert {shard: (it.rollout, it.move.target) for shard, it in wanted.items()} == {
        ("DE", 0): ("m2", "mad"),
        ("FR", 0): ("r3", "fra"),
    }


def test_a_first_owner_is_lawful_before_it_is_not_drained():
    rule = {"name": "china", "regions": ["CN"], "jurisdictions": ["CN"], "idcs": {"sha": 1}, "shards": 2}
    policy = _compiled({"sha": {"jurisdiction": "CN"}}, [rule])
    assert intended_owners(policy, {}, frozenset({"sha"})) == {("CN", 0): "sha", ("CN", 1): "sha"}
