"""What a transaction's repeat may conclude."""

import pytest

from runtime.etcd import (
    EtcdTooLarge,
    EtcdUnavailable,
    KeyValue,
    TxnResult,
    compare_create_revision,
    compare_mod_revision,
    delete_op,
    get_op,
    put_op,
)
from runtime.etcd.txn import find_guard, is_read_only, judge_repeat, to_request

PUT = put_op("k", b"mine", lease=7)


def kv(value: bytes = b"mine", *, lease: int = 7, version: int = 1, mod_revision: int = 20) -> KeyValue:
    return KeyValue("k", value, 10, mod_revision, version, lease)


def repeat(found: KeyValue | None) -> TxnResult:
    return TxnResult(succeeded=False, revision=30, results=(found,))


@pytest.mark.parametrize(
    ("compare", "op"),
    [
        (compare_create_revision("k", 0), PUT),
        (compare_mod_revision("k", 0), PUT),
        (compare_mod_revision("k", 5), PUT),
        (compare_mod_revision("k", 5), delete_op("k")),
        (compare_create_revision("k", 5), delete_op("k")),
    ],
)
def test_a_compare_that_success_makes_false_is_a_guard(compare, op):
    assert find_guard([compare], [get_op("other"), op], [get_op("k")]) == (compare, op)


@pytest.mark.parametrize(
    ("compares", "success", "failure"),
    [
        ([compare_create_revision("k", 5)], [PUT], []),  # a put does not change the create revision
        ([compare_create_revision("k", 0)], [delete_op("k")], []),  # nor does deleting what is not there
        ([compare_create_revision("other", 0)], [PUT], []),
        ([compare_create_revision("k", 0)], [PUT], [put_op("log", b"lost")]),  # failure may apply twice
        ([], [PUT], []),
    ],
)
def test_a_transaction_that_could_apply_twice_has_no_guard(compares, success, failure):
    assert find_guard(compares, success, failure) is None


def test_a_transaction_that_only_reads_may_be_repeated():
    assert is_read_only([get_op("a")], [get_op("b")])
    assert not is_read_only([get_op("a")], [delete_op("b")])


def test_a_repeat_that_finds_our_own_mark_succeeded_at_its_revision():
    guard = (compare_create_revision("k", 0), PUT)
    assert judge_repeat(guard, [PUT], repeat(kv())) == TxnResult(True, 20, (None,))


def test_a_repeat_that_finds_the_guard_unbroken_failed_by_another_compare():
    guard = (compare_mod_revision("k", 20), PUT)
    assert judge_repeat(guard, [PUT], repeat(kv(b"old"))) == TxnResult(False, 30, ())
    absent = (compare_create_revision("k", 0), PUT)
    assert judge_repeat(absent, [PUT], repeat(None)) == TxnResult(False, 30, ())


@pytest.mark.parametrize("found", [kv(b"theirs"), kv(lease=8), kv(version=2)])
def test_a_repeat_that_finds_another_mark_does_not_guess(found):
    with pytest.raises(EtcdUnavailable) as caught:
        judge_repeat((compare_create_revision("k", 0), PUT), [PUT], repeat(found))
    assert caught.value.may_have_applied
    assert "theirs" not in str(caught.value)


def test_a_repeat_does_not_guess_who_deleted():
    with pytest.raises(EtcdUnavailable):
        judge_repeat((compare_mod_revision("k", 5), delete_op("k")), [delete_op("k")], repeat(None))


def test_a_repeat_does_not_invent_what_success_would_have_read():
    guard = (compare_create_revision("k", 0), PUT)
    with pytest.raises(EtcdUnavailable):
        judge_repeat(guard, [PUT, get_op("other")], repeat(kv()))


def test_more_operations_than_etcd_takes_are_refused_before_sending():
    to_request([], [put_op(str(number), b"") for number in range(128)], [])
    with pytest.raises(EtcdTooLarge, match="this one has 129"):
        to_request([], [put_op(str(number), b"") for number in range(129)], [])
