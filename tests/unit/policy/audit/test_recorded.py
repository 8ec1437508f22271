"""Revisions against their records."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.audit.entry import AuditEntry, AuditHead, ChainBroken, Fact
from policy.audit.facts import policy_fact, revision_hash, rules_hash
from policy.audit.recorded import RecordedRevisions
from policy.records import PolicyRevision

FIRST = PolicyRevision(
    1, 0, "version: 1\n", "ada", "first", "2026-03-01T12:00:00.123456+00:00", "r00000001", {"version": 1}
)
SECOND = PolicyRevision(2, 1, "version: 1\nidcs: {}\n", "bob", "second", "2026-03-02T12:00:00+00:00", "", {"idcs": {}})


def recorded(*facts):
    revisions, head = RecordedRevisions(), AuditHead()
    for fact in facts:
        entry = AuditEntry.after(head, fact)
        revisions.take(entry)
        head = entry.head
    return revisions


BOTH = recorded(policy_fact(FIRST, None), Fact("drain", {}), policy_fact(SECOND, FIRST))


def found(record):
    return revision_hash(record, rules_hash(record))


def test_revisions_that_nobody_touched_are_as_recorded():
    for record in (FIRST, SECOND):
        BOTH.check(record.revision, found(record))
    BOTH.check_complete(1, 2, 2)
    assert BOTH.numbers == [1, 2]


CHANGES = {
    "document": "version: 2\n",
    "author": "eve",
    "message": "",
    "parent": 5,
    "create_time": "2026-03-01T12:00:00.123457+00:00",
    "rollout": "r2",
    "rules": {"version": 2},
}


@given(st.sampled_from(sorted(CHANGES)), st.sampled_from([FIRST, SECOND]))
def test_a_changed_field_of_a_stored_revision_is_found(name, record):
    with pytest.raises(ChainBroken, match="changed since"):
        BOTH.check(record.revision, found(replace(record, **{name: CHANGES[name]})))


def test_a_revision_that_has_gone_is_found():
    with pytest.raises(ChainBroken, match="cannot be read") as caught:
        BOTH.check(2, "")
    assert caught.value.number == 3


def test_a_revision_without_a_record_is_found_unless_it_is_older_than_the_trail():
    only_second = recorded(policy_fact(SECOND, FIRST))
    with pytest.raises(ChainBroken, match="policy revision 1"):
        only_second.check_complete(1, 2, 2)
    only_second.check_complete(2, 2, 2)
    with pytest.raises(ChainBroken, match="policy revision 3"):
        BOTH.check_complete(1, 3, 3)


def test_a_current_revision_that_went_back_is_found():
    with pytest.raises(ChainBroken, match="1 is taken for the newest"):
        BOTH.check_complete(1, 1, 1)


def test_a_revision_that_is_recorded_twice_is_found():
    with pytest.raises(ChainBroken, match="before"):
        recorded(policy_fact(FIRST, None), policy_fact(FIRST, None))


def test_the_entry_of_a_revision_names_who_when_why_and_what():
    content = policy_fact(SECOND, FIRST).content
    assert (content["revision"], content["parent"], content["author"], content["message"]) == (2, 1, "bob", "second")
    assert content["diff"].splitlines()[0] == "--- revision 1"
    assert "+idcs: {}" in content["diff"].splitlines()
    assert content["diff_is_cut"] is False
