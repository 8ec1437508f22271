"""The chain in pure code: whatever is changed, removed, swapped or added is found, and where."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.audit.entry import AuditEntry, AuditHead, ChainBroken, ChainCheck, Fact, canonical

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CONTENT = st.dictionaries(st.text(max_size=10), JSON, max_size=4)
FIELDS = ("number", "time", "kind", "content", "previous_hash", "hash")


def chain(contents):
    entries, head = [], AuditHead()
    for content in contents:
        entries.append(AuditEntry.after(head, Fact("move", content)))
        head = entries[-1].head
    return entries


def verify(entries, head=None, anchors=None):
    check = ChainCheck(anchors)
    for entry in entries:
        check.take(entry)
    check.end(head)
    return check


def fault(entries, head=None, anchors=None):
    with pytest.raises(ChainBroken) as caught:
        verify(entries, head, anchors)
    return caught.value


TEN = chain([{"n": number} for number in range(10)])
TEN_HEAD = TEN[-1].head


@given(st.lists(CONTENT, max_size=6))
def test_an_untouched_trail_is_sound_and_survives_its_own_form(contents):
    entries = chain(contents)
    assert [AuditEntry.decode(entry.encode()) for entry in entries] == entries
    check = verify(entries, entries[-1].head if entries else AuditHead())
    assert check.head.number == len(contents)


@st.composite
def one_changed_field(draw):
    contents = draw(st.lists(CONTENT, min_size=1, max_size=6))
    place = draw(st.integers(0, len(contents) - 1))
    return contents, place, draw(st.sampled_from(FIELDS)), draw(st.text() | st.integers()), draw(CONTENT)


@given(one_changed_field())
def test_one_changed_field_of_one_entry_is_found_where_it_is(change):
    contents, place, name, scalar, content = change
    entries = chain(contents)
    head = entries[-1].head
    old = getattr(entries[place], name)
    if name == "content":
        new = content
    elif name == "number":
        new = scalar if isinstance(scalar, int) else old + 1
    else:
        new = str(scalar)
    if canonical(new) == canonical(old):
        new = {**old, "one more": 1} if name == "content" else old + ("x" if isinstance(old, str) else 1)
    entries[place] = replace(entries[place], **{name: new})
    assert fault(entries, head).number == place + 1


@given(st.integers(0, 9), st.data())
def test_an_entry_that_was_rewritten_with_a_fitting_hash_is_found_by_its_successor_or_the_head(place, data):
    entries = list(TEN)
    content = data.draw(CONTENT.filter(lambda content: content != {"n": place}))
    before = entries[place - 1].head if place else AuditHead()
    entries[place] = AuditEntry.after(before, Fact("move", content, time=entries[place].time))
    assert fault(entries, TEN_HEAD).number in {place + 1, place + 2}


@given(st.integers(0, 9))
def test_a_removed_entry_is_found(place):
    entries = [entry for number, entry in enumerate(TEN) if number != place]
    assert fault(entries, TEN_HEAD).number == place + 1


@given(st.sets(st.integers(0, 9), min_size=2, max_size=2))
def test_two_swapped_entries_are_found(places):
    one, other = sorted(places)
    entries = list(TEN)
    entries[one], entries[other] = entries[other], entries[one]
    assert fault(entries, TEN_HEAD).number == one + 1


@given(st.integers(0, 9))
def test_a_cut_end_is_found_by_the_head_and_by_an_anchor_when_the_head_was_cut_too(length):
    assert "its head names entry 10" in fault(TEN[:length], TEN_HEAD).problem
    short = TEN[:length]
    fixed = short[-1].head if short else AuditHead()
    verify(short, fixed)
    assert fault(short, fixed, {10: TEN_HEAD.hash}).number == length + 1


def test_an_entry_above_the_head_is_found():
    assert fault(TEN, TEN[7].head).number == 9
    assert fault(TEN, AuditHead()).number == 1


def test_a_head_with_another_hash_is_found():
    assert fault(TEN, AuditHead(10, TEN[8].hash)).number == 10


@given(st.integers(0, 9), st.integers(0, 9))
def test_a_trail_rewritten_from_some_entry_on_is_found_by_every_anchor_from_there_on(place, anchored):
    entries = list(TEN[:place])
    for number in range(place, 10):
        head = entries[-1].head if entries else AuditHead()
        entries.append(AuditEntry.after(head, Fact("move", {"n": -1 if number == place else number})))
    anchors = {anchored + 1: TEN[anchored].hash}
    if anchored < place:
        verify(entries, entries[-1].head, anchors)
    else:
        assert fault(entries, entries[-1].head, anchors).number == anchored + 1


RAW = TEN[1].encode()
SPOILED = {
    "a space": b" " + RAW,
    "another form of a number": RAW.replace(b'"n":1', b'"n":1.0'),
    "another form of the time": RAW.replace(b'Z"', b'+00:00"'),
    "a name twice": RAW.replace(b'"kind"', b'"kind":"move","kind"'),
    "an unknown field": RAW[:-1] + b',"x":1}',
    "a missing field": RAW.replace(b'"kind":"move",', b""),
    "no time": RAW.replace(b'Z"', b'"'),
    "a list": b"[]",
    "half of it": RAW[:50],
    "no text": b"\xff",
    "very deep": b"[" * 100_000,
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_no_encoder_would_have_written_is_no_entry(how):
    assert SPOILED[how] != RAW
    with pytest.raises(ValueError, match="not an AuditEntry"):
        AuditEntry.decode(SPOILED[how])


def repr_of(value):
    return type(value).__name__ + str(value)[:3]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1: 2}, {"a": object()}], ids=repr_of)
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"audit entry|strings|JSON"):
        canonical(value)


def test_the_canonical_form_is_what_other_tools_write_too():
    assert canonical({"b": 12.0, "a": ["ü", None, True, 0.5]}) == '{"a":["ü",null,true,0.5],"b":12}'
    entry = json.loads(TEN[3].encode())
    assert list(entry) == sorted(entry)
