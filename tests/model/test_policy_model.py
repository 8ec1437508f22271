"""The pure policy against its laws, for any input: assignment, routing table and decisions."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.assignment import assign, quotas
from policy.compile import compile_policy
from policy.document import PolicyDocument
from policy.errors import PolicyRejected
from policy.loading import load_policy
from policy.model import Operation
from policy.sharding import shard_of
from policy.table import RoutingTable
from tests.unit.policy.documents import POLICY, compiled, serving

IDCS = ["ams", "fra", "sha", "sin"]
WEIGHTS = st.dictionaries(st.sampled_from(IDCS), st.integers(0, 100), min_size=1).filter(lambda w: sum(w.values()))
SHARDS = st.integers(1, 24)
OWNERS = st.dictionaries(st.integers(-1, 30), st.sampled_from([*IDCS, "gone"]))


@given(WEIGHTS, SHARDS, OWNERS)
def test_shares_are_exact_and_moves_are_fewest(weights, shards, current):
    owners = assign(weights, shards, current)
    counts = Counter(owners)
    total = sum(weights.values())
    for idc, weight in weights.items():
        assert abs(counts[idc] - shards * weight / total) < 1
    assert counts == {idc: n for idc, n in quotas(weights, shards, current).items() if n}
    held = Counter(idc for shard, idc in current.items() if 0 <= shard < shards)
    kept = sum(current.get(shard) == idc for shard, idc in enumerate(owners))
    # With these quotas nobody can keep more; and no other lawful quotas would let them.
    assert kept == sum(min(held[idc], counts[idc]) for idc in weights)
    assert kept == _most_that_can_stay(weights, shards, held)


def _most_that_can_stay(weights, shards, held):
    """Tries every quota that largest remainder permits."""
    total = sum(weights.values())
    floors = {idc: shards * weight // total for idc, weight in weights.items()}
    left = shards - sum(floors.values())
    remainders = {idc: shards * weight % total for idc, weight in weights.items()}
    best = 0
    for extra in product((0, 1), repeat=len(weights)):
        chosen = {idc for idc, more in zip(weights, extra, strict=True) if more}
        others = [remainders[idc] for idc in weights if idc not in chosen]
        lawful = len(chosen) == left and all(remainders[idc] >= max(others, default=0) for idc in chosen)
        if lawful and all(weights[idc] for idc in chosen):
            best = max(best, sum(min(held[idc], floors[idc] + (idc in chosen)) for idc in weights))
    return best


@given(WEIGHTS, SHARDS, OWNERS)
def test_assignment_is_stable_and_knows_no_order(weights, shards, current):
    owners = assign(weights, shards, current)
    assert assign(weights, shards, dict(enumerate(owners))) == owners
    assert assign(dict(reversed(weights.items())), shards, dict(reversed(current.items()))) == owners


@given(st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1)), st.integers(1, 4096))
def test_a_shard_is_always_in_range(key, shards):
    try:
        assert 0 <= shard_of(key, shards) < shards
    except ValueError:
        pytest.fail("only InvalidValue is raised, for keys that are not Unicode")


SMALL = POLICY.replace("shards: 8", "shards: 3").replace("sin: 100}}", "sin: 100}, shards: 2}").split("expect:")[0]
POLICIES = [
    compile_policy(load_policy(text).document, revision)
    for revision, text in enumerate([SMALL, SMALL.replace("[SG, MY]", "[SG]"), SMALL.replace("MY]", "MY, JP]")], 1)
]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["DE", "SG", "MY", "JP"]),
        st.integers(0, 3),
        st.sampled_from([*IDCS, None]),
        st.sampled_from(["opening", "serving", "later"]),
    ),
    max_size=4,
)


@given(st.lists(st.tuples(CHANGES, st.sampled_from([None, *POLICIES])), max_size=8))
def test_a_patched_table_is_the_table_that_would_be_built(steps):
    """Also that resolve agrees with `shard_of`, and that no table changes once made."""
    policy, records, epochs = POLICIES[0], {}, Counter()
    table = RoutingTable.build(policy, (), 0)
    before = []
    for revision, (changes, newer) in enumerate(steps, 1):
        batch = []
        for code, shard, idc, phase in changes:
            epochs[code, shard] += 1
            record = None if idc is None else serving(idc, epochs[code, shard], phase)
            records[code, shard] = record
            batch.append((code, shard, record))
        if newer and newer.revision >= policy.revision:
            policy = newer
        before.append((table, list(table.all_routes())))
        table = table.patch(store_revision=revision, policy=newer, shards=batch)
    built = RoutingTable.build(policy, [(*at, record) for at, record in records.items() if record], len(steps))
    assert table.policy is policy
    for code in policy.regions:
        assert table.routes_of(code) == built.routes_of(code)
        for key in ("a", "Zürich", -7, 2**40):
            route = table.route(code, shard_of(key, policy.regions[code].shards))
            assert route is None or table.resolve(code, key) is route
    for old, routes in before:
        assert list(old.all_routes()) == routes


RULES = st.lists(
    st.fixed_dictionaries(
        {
            "regions": st.lists(st.sampled_from(["DE", "CN", "SG", "EU"]), min_size=1, max_size=2),
            "from": st.lists(st.sampled_from(["CN", "EU", "SG"]), min_size=1, max_size=2),
            "operations": st.lists(st.sampled_from(["read", "write"]), min_size=1, max_size=2),
            "purposes": st.lists(st.sampled_from(["support", "audit", "*"]), min_size=1, max_size=2),
            "withhold": st.lists(st.sampled_from(["personal", "other"]), max_size=1),
        }
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(RULES)
def test_across_a_border_only_what_a_rule_says_is_allowed_l8(rules):
    content = json.loads(load_policy(POLICY).document.to_json())
    content["access"] = [{"name": f"r{number}", **rule} for number, rule in enumerate(rules)]
    content["expect"] = []
    policy = compile_policy(PolicyDocument.from_json(json.dumps(content)), 1)
    members = {"EU": {"AT", "DE", "FI", "NO", "SE"}}
    for code, idc, operation, purpose in product(("DE", "CN", "SG"), IDCS, Operation, ("", "support", "nonsense")):
        decision = policy.decide("customers", code, (idc,), operation, purpose)
        at_home = policy.idcs[idc] in policy.regions[code].jurisdictions
        fitting = [
            (number, rule)
            for number, rule in enumerate(rules)
            if any(code == name or code in members.get(name, ()) for name in rule["regions"])
            and policy.idcs[idc] in rule["from"]
            and operation.value in rule["operations"]
            and ("*" in rule["purposes"] or purpose in rule["purposes"])
        ]
        assert decision.allowed == (at_home or bool(fitting))
        assert decision.crosses_border != at_home
        if fitting and not at_home:
            number, rule = fitting[0]
            assert decision.rule == f"r{number}"
            assert decision.withheld == ({"name"} if "personal" in rule["withhold"] else set())


@given(st.lists(st.sampled_from([*IDCS, "mars"]), max_size=4), st.sampled_from(["", "support"]))
def test_more_askers_never_see_more(askers, purpose):
    policy = compiled()
    together = policy.decide("customers", "DE", tuple(askers), Operation.READ, purpose)
    alone = [policy.decide("customers", "DE", (asker,), Operation.READ, purpose) for asker in askers]
    assert together.allowed == (bool(alone) and all(one.allowed for one in alone))
    if together.allowed:
        assert all(one.withheld <= together.withheld for one in alone)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(POLICY)), st.integers(0, 40), st.text(max_size=12))
def test_no_text_breaks_the_loader(at, cut, inserted):
    """Whatever is damaged, the document loads or is rejected with findings, nothing else."""
    try:
        loaded = load_policy(POLICY[:at] + inserted + POLICY[at + cut :])
    except PolicyRejected as error:
        rejected = error
    else:
        compile_policy(loaded.document, 1)
        return
    assert any(finding.severity == "error" for finding in rejected.findings)
