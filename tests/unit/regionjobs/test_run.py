"""In which order a run begins with shards."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from regionjobs.run import interleaved

shards = st.lists(
    st.tuples(st.tuples(st.sampled_from(["CN", "DE", "FR"]), st.integers(0, 50)), st.integers(0, 9)),
    unique_by=lambda item: item[0],
)


def test_each_region_code_comes_once_before_any_comes_twice():
    found = [(("DE", 0), 5), (("DE", 1), 6), (("DE", 2), 7), (("FR", 4), 8)]
    assert interleaved(found) == [(("DE", 0), 5), (("FR", 4), 8), (("DE", 1), 6), (("DE", 2), 7)]


def test_nothing_found_is_nothing_to_do():
    assert interleaved([]) == []


@given(shards)
def test_nothing_is_lost_and_whoever_has_many_comes_no_earlier(found):
    ordered = interleaved(found)
    assert sorted(ordered) == sorted(found)
    seen: Counter[str] = Counter()
    for (code, _), _ in ordered:
        seen[code] += 1
        # Whoever has as many left has come as often before anybody comes again.
        totals = Counter(code for (code, _), _ in found)
        assert all(seen[other] >= min(seen[code] - 1, totals[other]) for other in totals)
    for code in seen:
        mine = [key for key, _ in ordered if key[0] == code]
        assert mine == [key for key, _ in found if key[0] == code]
