"""The judge of law L4 must itself be judged: it accepts what an atomic register did and finds what one cannot do."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.support.linearizability import LOST, Event, is_linearizable


def read(value: object, start: float, end: float) -> Event:
    return Event(False, value, start, end)


def write(value: object, start: float, end: float) -> Event:
    return Event(True, value, start, end)


def test_a_read_that_misses_an_acknowledged_write_is_found():
    assert not is_linearizable([write(1, 0, 1), read(None, 2, 3)])


def test_a_read_beside_a_write_may_see_either_value():
    assert is_linearizable([write(1, 0, 5), read(None, 1, 2), read(1, 3, 4)])


def test_a_value_that_comes_and_goes_is_found():
    assert not is_linearizable([write(1, 0, 9), read(1, 1, 2), read(None, 3, 4)])


def test_a_lost_write_may_have_happened_or_not():
    assert is_linearizable([write(1, 0, LOST), read(None, 1, 2)])
    assert is_linearizable([write(1, 0, LOST), read(None, 1, 2), read(1, 3, 4)])
    assert not is_linearizable([write(1, 5, LOST), read(1, 1, 2)])


def test_a_retry_that_writes_again_over_a_later_write_is_found():
    history = [write("a", 0, 10), read("a", 1, 2), write("b", 3, 4), read("b", 5, 6), read("a", 7, 8)]
    assert not is_linearizable(history)


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_what_an_atomic_register_did_is_accepted_and_a_read_from_nowhere_is_not(seed: int, count: int):
    dice = random.Random(seed)
    state: object = None
    events: list[Event] = []
    for number in range(count):
        moment = float(number)
        start, end = moment - dice.random() * 4, moment + dice.random() * 4
        if dice.random() < 0.5:
            state = number
            events.append(write(number, start, LOST if dice.random() < 0.1 else end))
        else:
            events.append(read(state, start, end))
    dice.shuffle(events)
    assert is_linearizable(events)
    assert not is_linearizable([*events, read("never written", 0, count)])
