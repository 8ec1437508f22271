"""Law L7 over histories: each decision of each revision can be told again from what the store has kept of it."""

from __future__ import annotations

import json
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.compile import compile_policy
from policy.document import PolicyDocument
from policy.explain import explain
from policy.follower import load_stored
from policy.loading import load_policy
from policy.model import Operation
from policy.records import PolicyRevision
from tests.support.routing import POLICY

BASE = json.loads(load_policy(POLICY).document.to_json())
ASKERS = [("sin",), ("fra",), ("sha",), ("sin", "fra"), ("mars",), ()]
PURPOSES = ["", "support", "audit", "nonsense"]

ACCESS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["a", "b", "c", "d"]),
            "regions": st.lists(st.sampled_from(["DE", "FR", "CN", "SG"]), min_size=1, max_size=3, unique=True),
            "from": st.lists(st.sampled_from(["CN", "EU", "SG", "UK"]), min_size=1, max_size=2, unique=True),
            "operations": st.lists(st.sampled_from(["read", "write"]), min_size=1, max_size=2, unique=True),
            "purposes": st.lists(st.sampled_from(["support", "audit", "*"]), min_size=1, max_size=2, unique=True),
            "withhold": st.lists(st.just("personal"), max_size=1),
        }
    ),
    max_size=4,
    unique_by=lambda rule: rule["name"],
)
REVISIONS = st.lists(ACCESS, min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(REVISIONS)
def test_law_l7_an_old_decision_is_explained_by_the_rule_and_revision_that_made_it(revisions):
    stored: list[bytes] = []
    decided: list[dict[tuple[object, ...], object]] = []
    for number, access in enumerate(revisions, 1):
        document = PolicyDocument.from_json(json.dumps(BASE | {"access": access}))
        policy = compile_policy(document, number)
        decided.append({question: policy.decide(*question) for question in _questions()})
        record = PolicyRevision(number, number - 1, "", "", "", "", rules=json.loads(document.to_json()))
        stored.append(record.encode())
    for number, (value, decisions) in enumerate(zip(stored, decided, strict=True), 1):
        policy = load_stored(PolicyRevision.decode(value))
        for question, decision in decisions.items():
            told = explain(policy, *question)
            assert told.decision == decision
            assert told.decision.policy_revision == number
            last = told.steps[-1]
            assert (last.kind, last.rule) == ("verdict", decision.rule)
            assert last.text.startswith("allowed" if decision.allowed else "denied")
            assert f"revision {number}" in last.text
            # Whoever reads the steps without knowing the verdict comes to the same one.
            deciding = [step for step in told.steps[:-1] if step.decides]
            assert len(deciding) >= max(1, len(question[2]))
            assert decision.allowed == all(step.rule for step in deciding)
            if decision.allowed:
                assert decision.rule in {step.rule for step in deciding}


def _questions() -> list[tuple[object, ...]]:
    return list(product(["customers", "counters"], ["DE", "CN", "SG"], ASKERS, Operation, PURPOSES))
