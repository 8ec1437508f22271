"""Diffs of documents are right, bounded, and quick whatever the documents are."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from policy.audit.diff import MAX_BYTES, bounded_diff

LINES = st.lists(st.sampled_from(["a", "b", "c: 1", "  - x"]), max_size=12).map("\n".join)


def test_a_change_is_shown_with_its_surroundings():
    before = "".join(f"line {number}\n" for number in range(20))
    diff, is_cut = bounded_diff(before, before.replace("line 9\n", "line nine\n"), "revision 1", "revision 2")
    assert diff.splitlines()[:3] == ["--- revision 1", "+++ revision 2", "@@ -7,7 +7,7 @@"]
    assert {"-line 9", "+line nine", " line 8"} <= set(diff.splitlines())
    assert not is_cut


@given(LINES, LINES)
def test_what_goes_and_what_comes_add_up(before, after):
    diff, _ = bounded_diff(before, after, "old", "new")
    body = diff.splitlines()[2:]
    gone = sum(line.startswith("-") for line in body)
    come = sum(line.startswith("+") for line in body)
    assert come - gone == len(after.splitlines()) - len(before.splitlines())
    assert bool(diff) == (before.splitlines() != after.splitlines())


def test_a_large_diff_is_cut_at_a_line():
    after = "".join(f"{number} {'ü' * 50}\n" for number in range(5_000))
    diff, is_cut = bounded_diff("", after, "nothing", "revision 1")
    assert is_cut
    assert MAX_BYTES - 200 < len(diff.encode()) <= MAX_BYTES
    assert diff.splitlines()[-1].endswith("ü" * 50)


def test_documents_that_share_nothing_are_not_compared_line_by_line():
    before = "".join(f"{number % 7}\n" for number in range(50_000))
    after = "".join(f"{number % 11}\n" for number in range(1, 50_000))
    began = time.process_time()
    diff, is_cut = bounded_diff(before, after, "old", "new")
    assert time.process_time() - began < 2
    assert is_cut
    assert "-0" in diff
