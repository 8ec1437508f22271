import itertools

import pytest

from policy.errors import UnknownRegion
from policy.explain import explain
from policy.model import Operation
from tests.unit.policy.documents import compiled

READ = Operation.READ


def test_a_crossing_is_explained_rule_by_rule_l7():
    explanation = explain(compiled(), "orders", "SG", ("fra",), READ, "")
    assert [step.text for step in explanation.steps] == [
        "residency rule asia: SG may be stored in SG; shares: sin 100",
        "fra asks from EU: a border is crossed, so an access rule must allow it",
        "access rule eu-support does not cover SG",
        "access rule asia-billing fits and decides",
        "allowed by rule asia-billing, policy revision 7",
    ]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (("customers", "DE", ("sin",), Operation.WRITE, "support"), "eu-support is for read only"),
        (("customers", "DE", ("sin",), READ, "audit"), "eu-support is for purpose support only"),
        (("customers", "DE", ("sha",), READ, "support"), "eu-support is for askers from SG"),
        (("customers", "SG", ("fra",), READ, ""), "asia-billing is for dataset orders only"),
        (("customers", "DE", ("fra",), READ, ""), "no border is crossed"),
        (("customers", "DE", ("mars",), READ, ""), "does not know the asking IDC"),
        (("customers", "DE", (), READ, ""), "nobody is named as asking"),
        (("customers", "DE", ("sin",), READ, "support"), "without name"),
    ],
)
def test_each_reason_is_told(question, reason):
    assert reason in " | ".join(step.text for step in explain(compiled(), *question).steps)


def test_an_explanation_never_contradicts_the_decision():
    policy = compiled()
    for dataset, code, asker, operation, purpose in itertools.product(
        policy.datasets, policy.regions, policy.idcs, Operation, ("", "support", "x")
    ):
        explanation = explain(policy, dataset, code, (asker,), operation, purpose)
        assert explanation.decision == policy.decide(dataset, code, (asker,), operation, purpose)
        (decisive,) = [step for step in explanation.steps if step.decides]
        assert bool(decisive.rule) == explanation.decision.allowed


def test_an_unknown_region_cannot_be_explained():
    with pytest.raises(UnknownRegion):
        explain(compiled(), "orders", "JP", ("fra",), READ, "")
