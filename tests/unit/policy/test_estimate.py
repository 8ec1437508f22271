from __future__ import annotations

import pytest

from policy.estimate import Load, Pace, estimate_seconds, pace_of
from policy.records import MoveRecord

PAIR, OTHER = ("fra", "ams"), ("fra", "lon")


def move(rows: int, rate: float, seconds: int, phase: str = "done") -> MoveRecord:
    start, end = "2026-01-01T00:00:00+00:00", f"2026-01-01T00:00:{seconds:02d}+00:00"
    return MoveRecord(
        "r", "DE", 0, "fra", "ams", phase, rows=rows, rows_per_second=rate, start_time=start, end_time=end
    )


def test_the_pace_is_the_middle_of_moves_of_some_size_and_the_time_of_small_ones():
    seen = [move(5000, 100.0, 50), move(5000, 300.0, 20), move(5000, 200.0, 30), move(3, 9.0, 2), move(0, 0.0, 4)]
    assert pace_of([*seen, move(9000, 1.0, 59, "called off")]) == Pace(200.0, 3.0)
    assert pace_of([]) == Pace(None, 0.0)


def test_many_small_moves_take_their_time_however_few_rows_they_have():
    assert estimate_seconds({PAIR: Load(590, 1000)}, Pace(1000.0, 0.1)) == pytest.approx(60.0)


def test_two_pairs_run_side_by_side_and_three_do_not():
    pace = Pace(100.0, 0.0)
    assert estimate_seconds({PAIR: Load(1, 1000), OTHER: Load(1, 1000)}, pace) == 10.0
    three = {PAIR: Load(1, 1000), OTHER: Load(1, 1000), ("ams", "lon"): Load(1, 1000)}
    assert estimate_seconds(three, pace) == 15.0


def test_without_a_pace_nothing_is_guessed():
    assert estimate_seconds({PAIR: Load(1, 1000)}, Pace(None, 0.2)) is None
    assert estimate_seconds({}, Pace(100.0, 0.2)) is None
