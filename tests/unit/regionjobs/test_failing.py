"""What becomes of a batch that fails, whatever outcomes come in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionjobs.definition import OnPoison
from regionjobs.failing import Outcome, Part, Parts, Verdict, step, whole

FAILING = st.sampled_from([Outcome.FAILED, Outcome.FAILED, Outcome.DONE, Outcome.PASSING])
"""Failures prevail: mostly a batch is to be taken apart."""


class Walk:
    """Takes a batch through the table, as a passage does, and notes what became of each row."""

    def __init__(self, count: int, attempts: int, on_poison: OnPoison = OnPoison.SET_ASIDE, failures: int = 0) -> None:
        self.attempts, self.on_poison = attempts, on_poison
        self.parts: Parts = whole(count, failures=failures, attempts=attempts)
        self.handled: list[int] = []
        self.set_aside: list[int] = []
        self.failures = 0
        self.stopped_at: int | None = None

    @property
    def first(self) -> Part:
        return self.parts[0]

    def go(self, outcome: Outcome) -> Verdict:
        first, (self.parts, verdict) = (
            self.first,
            step(self.parts, outcome, attempts=self.attempts, on_poison=self.on_poison),
        )
        rows = list(range(first.start, first.stop))
        self.failures += outcome is Outcome.FAILED
        if verdict is Verdict.NEXT:
            self.handled += rows
        if verdict is Verdict.SET_ASIDE:
            assert len(rows) == 1
            self.set_aside += rows
        if verdict is Verdict.STOP:
            (self.stopped_at,) = rows
        return verdict

    def against(self, poison: set[int]) -> None:
        """To the end, where a part fails exactly when it holds one of these rows."""
        while self.parts and self.stopped_at is None:
            rows = range(self.first.start, self.first.stop)
            self.go(Outcome.FAILED if poison & set(rows) else Outcome.DONE)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 20), st.data())
def test_every_row_is_handled_or_set_aside_exactly_once_and_in_order(count, attempts, failures, data):
    walk = Walk(count, attempts, failures=failures)
    while walk.parts:
        walk.go(data.draw(FAILING))
        left = [row for part in walk.parts for row in range(part.start, part.stop)]
        assert sorted([*walk.handled, *walk.set_aside, *left]) == list(range(count))
        assert left == list(range(count - len(left), count))
    assert walk.handled == sorted(walk.handled)
    assert walk.set_aside == sorted(walk.set_aside)
    # Each row was alone once at most, and each part that was halved was tried once, after the attempts at the whole.
    assert walk.failures <= attempts - 1 + 2 * count - 1


@given(st.integers(1, 64), st.integers(1, 5), st.data())
def test_exactly_the_rows_that_fail_are_set_aside(count, attempts, data):
    poison = data.draw(st.sets(st.integers(0, count - 1)))
    walk = Walk(count, attempts)
    walk.against(poison)
    assert walk.set_aside == sorted(poison)
    assert walk.handled == [row for row in range(count) if row not in poison]


@given(st.integers(1, 64), st.integers(1, 5), st.data())
def test_one_bad_row_costs_a_failure_for_each_time_that_its_batch_is_halved(count, attempts, data):
    walk = Walk(count, attempts)
    walk.against({data.draw(st.integers(0, count - 1))})
    assert walk.failures <= attempts + count.bit_length()


@given(st.integers(1, 64), st.integers(1, 5), st.data())
def test_a_job_that_stops_at_poison_has_handled_everything_before_it_and_nothing_after(count, attempts, data):
    poison = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    walk = Walk(count, attempts, OnPoison.STOP)
    walk.against(poison)
    assert walk.stopped_at == min(poison)
    assert walk.handled == list(range(min(poison)))
    assert walk.set_aside == []
    assert walk.first == Part(min(poison), min(poison) + 1, walk.first.failures)


@given(st.integers(1, 40), st.integers(1, 6), st.lists(FAILING, max_size=60), st.integers(1, 100))
def test_what_waiting_helps_against_changes_nothing_however_often_it_comes(count, attempts, outcomes, times):
    walk = Walk(count, attempts)
    for outcome in outcomes:
        if not walk.parts:
            return
        before = walk.parts
        for _ in range(times):
            assert walk.go(Outcome.PASSING) is Verdict.AGAIN
        assert walk.parts == before
        walk.go(outcome)


@given(st.integers(1, 40), st.integers(1, 6), st.lists(FAILING, max_size=60))
def test_a_lost_claim_ends_the_work_and_leaves_everything_as_it_was(count, attempts, outcomes):
    walk = Walk(count, attempts)
    for outcome in outcomes:
        before = walk.parts
        if not before:
            return
        assert walk.go(Outcome.LOST) is Verdict.GIVE_UP
        assert walk.parts == before
        walk.go(outcome)


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_a_batch_has_all_its_attempts_before_it_is_halved(attempts):
    walk = Walk(8, attempts)
    verdicts = [walk.go(Outcome.FAILED) for _ in range(attempts)]
    assert verdicts == [Verdict.AGAIN] * (attempts - 1) + [Verdict.SPLIT]
    assert [(part.start, part.stop) for part in walk.parts] == [(0, 4), (4, 8)]
    # The halves have used up theirs.
    assert walk.go(Outcome.FAILED) is Verdict.SPLIT


def test_failures_of_another_runner_count_but_leave_one_attempt():
    walk = Walk(1, 3, failures=2)
    assert walk.go(Outcome.FAILED) is Verdict.SET_ASIDE
    walk = Walk(1, 3, failures=1_000_000)
    assert walk.go(Outcome.DONE) is Verdict.NEXT
    assert walk.handled == [0]


def test_a_step_changes_nothing_that_it_was_given():
    parts = whole(4, failures=0, attempts=1)
    step(parts, Outcome.FAILED, attempts=1, on_poison=OnPoison.SET_ASIDE)
    assert parts == (Part(0, 4),)
