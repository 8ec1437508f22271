"""What the demo's job has counted is compared with the data file to the unit, and with the law."""

from __future__ import annotations

import pytest

from policy.compile import compile_policy
from policy.loading import load_policy
from regiongate.demo.counting import first_batches
from regiongate.demo.figures import Counted, Figures, expected_figures, judge, over_all
from regiongate.demo.places import Place
from regiongate.demo.stack import policy_file
from runtime.telemetry.spans import SpanRecord

POLICY = compile_policy(load_policy(policy_file().read_text()).document, 1)
PLACES = [
    Place("DE", "k1", {"population": 10}),
    Place("DE", "k2", {"population": 30}),
    Place("DE", "k0", {"population": 30}),
    Place("CN", "k3", {"population": 5}),
]
EXPECTED = expected_figures(PLACES)


def counted(**figures: Figures) -> Counted:
    return Counted(figures, frozenset(figures))


RIGHT = {
    "fra": counted(DE=Figures(2, 40, 30, "k2")),
    "ams": counted(DE=Figures(1, 30, 30, "k0")),
    "sha": counted(CN=Figures(1, 5, 5, "k3")),
}


def test_a_country_is_added_up_over_its_shards_and_of_two_equals_the_first_by_key_is_the_largest():
    assert EXPECTED["DE"] == Figures(3, 70, 30, "k0")
    assert over_all(RIGHT) == EXPECTED
    assert judge(POLICY, EXPECTED, RIGHT) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"fra": counted(DE=Figures(2, 41, 30, "k2"))}, "the job's figures of DE are 3 places with 71 people"),
        ({"fra": counted(DE=Figures(2, 40, 30, "k1")), "ams": counted()}, "the job's figures of DE are 2 places"),
        ({"sha": counted()}, "the job's figures of CN are none, the data file's are 1 places with 5 people"),
        ({"sin": Counted({}, frozenset(["CN"]))}, "results of CN lie in sin, where its law forbids them"),
        ({"lon": Counted({}, frozenset(["DE"]))}, "results of DE lie in lon, where its law forbids them"),
        ({"fra": counted(DE=Figures(2, 40, 30, "k2"), XX=Figures(1, 1, 1, "k9"))}, "results of XX lie in fra"),
    ],
)
def test_each_fault_is_found_and_names_no_key(change: dict[str, Counted], fault: str):
    wrong = judge(POLICY, EXPECTED, RIGHT | change)
    assert any(sentence.startswith(fault) for sentence in wrong), wrong
    assert not any(place.key in sentence for sentence in wrong for place in PLACES)


def test_of_a_run_with_many_batches_the_first_are_drawn():
    run = SpanRecord("t", "run", "", "job.run", "internal", "runner", "lon", 0, 99)
    batches = [SpanRecord("t", str(n), "run", "job.batch", "internal", "runner", "lon", n, n + 1) for n in range(9)]
    assert [span.span_id for span in first_batches([*reversed(batches), run])] == ["run", "0", "1", "2"]
