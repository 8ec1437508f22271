"""The demo's proof of placement finds whatever is wrong, and says so without naming a key."""

from __future__ import annotations

import pytest

from policy.compile import compile_policy
from policy.loading import load_policy
from regiongate.demo.placement import judge
from regiongate.demo.places import Place
from regiongate.demo.stack import policy_file

POLICY = compile_policy(load_policy(policy_file().read_text()).document, 1)
PLACES = [Place("DE", "k1", {}), Place("CN", "k2", {}), Place("SG", "k3", {})]
RIGHT = {"sha": {"k2": "CN"}, "fra": {"k1": "DE"}, "ams": {}, "sin": {"k3": "SG"}}


def test_what_is_lawful_and_whole_has_no_fault():
    placement = judge(POLICY, PLACES, RIGHT)
    assert placement.wrong == []
    assert placement.total == 3
    assert placement.rows["fra"] == {"DE": 1}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"fra": {}, "sha": {"k1": "DE", "k2": "CN"}}, "1 rows of DE lie in sha, where its law forbids them"),
        ({"sin": {"k3": "SG", "k9": "XX"}}, "1 rows of XX lie in sin, where its law forbids them"),
        ({"fra": {}}, "1 places are missing from every database"),
        ({"ams": {"k1": "DE"}}, "1 rows lie in more than one IDC"),
        ({"fra": {"k1": "FR"}}, "1 rows carry another tag than their country's"),
        ({"fra": {"k1": "DE", "k8": "DE"}}, "1 rows are in no data file"),
    ],
)
def test_each_fault_is_found_and_names_no_key(change, fault):
    wrong = judge(POLICY, PLACES, RIGHT | change).wrong
    assert fault in wrong
    assert not any(key in sentence for sentence in wrong for key in ("k1", "k2", "k3", "k8", "k9"))
