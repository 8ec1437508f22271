"""Arrow arrays from byte strings as PostgreSQL puts them together."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InvalidJob
from policy.model import Column, ColumnType, Dataset, KeyType
from regionjobs.arrow import ArrowLayout, bytes_array, fixed_array, text_array
from regionjobs.rows import RowShape

TIME = pa.timestamp("us", tz="UTC")
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


def seqs_of(values):
    """Sequences of rows, with gaps."""
    return np.arange(len(values), dtype=np.int64) * 3 + 5


def fixed(values, wire, kind, pack=None):
    """What the database would send of the values, read."""
    seqs = seqs_of(values)
    sent = b"".join(struct.pack(wire, pack(value) if pack else value) for value in values if value is not None)
    nulls = b"".join(struct.pack(">q", int(s)) for s, value in zip(seqs, values, strict=True) if value is None)
    dtype = {">q": ">i8", ">d": ">f8", ">?": "?"}[wire]
    array = fixed_array(sent or None, nulls or None, seqs, dtype, kind)
    array.validate(full=True)
    return array


def text(values):
    sent = b"\0".join(b"\xff" if value is None else value.encode() for value in values)
    array = text_array(sent if values else None, len(values))
    array.validate(full=True)
    return array


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)))
def test_int64s_are_read_as_they_were_sent(values):
    assert fixed(values, ">q", pa.int64()).to_pylist() == values


@given(st.lists(st.none() | st.floats(allow_nan=False)))
def test_doubles_are_read_as_they_were_sent(values):
    assert [repr(value) for value in fixed(values, ">d", pa.float64()).to_pylist()] == [repr(value) for value in values]


def test_what_is_no_number_is_a_value_and_not_null():
    array = fixed([math.nan, None, math.inf], ">d", pa.float64())
    assert array.null_count == 1
    assert math.isnan(array[0].as_py())


@given(st.lists(st.none() | st.booleans()))
def test_bools_are_read_as_they_were_sent(values):
    assert fixed(values, ">?", pa.bool_()).to_pylist() == values


@given(st.lists(st.none() | st.datetimes(timezones=st.just(UTC))))
def test_times_are_read_as_they_were_sent(values):
    array = fixed(values, ">q", TIME, lambda time: (time - EPOCH) // timedelta(microseconds=1))
    assert array.to_pylist() == values


def test_infinite_times_are_the_first_and_the_last_of_python():
    array = fixed([2**63 - 1, -(2**63)], ">q", TIME)
    assert array.to_pylist() == [datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]


@given(st.lists(st.none() | TEXT))
def test_texts_are_read_as_they_were_sent(values):
    assert text(values).to_pylist() == values


@pytest.mark.parametrize("values", [[], [""], [None], ["", ""], ["", None], [None, ""], ["ÿ", None, "\x01"]])
def test_empty_texts_and_nulls_are_told_apart(values):
    assert text(values).to_pylist() == values


@given(st.lists(st.none() | st.binary(max_size=8)))
def test_bytes_are_read_as_they_were_sent(values):
    lengths = b"".join(struct.pack(">i", -1 if value is None else len(value)) for value in values)
    array = bytes_array(b"".join(value or b"" for value in values) or None, lengths or None)
    array.validate(full=True)
    assert array.to_pylist() == values


def layout(key_type=KeyType.STRING):
    return ArrowLayout(Dataset("things", key_type, {"size": Column("size", ColumnType.INT64)}))


def record(count, deleted=()):
    """What the database sends of rows 1 to `count`."""
    seqs = [struct.pack(">q", seq) for seq in range(1, count + 1)]
    joined = b"".join(seqs) or None
    keys = b"\0".join(b"k%d" % seq for seq in range(1, count + 1)) or None
    # seq, deleted, key, update_time and its nulls, size and its nulls
    return [joined, b"".join(seqs[seq - 1] for seq in deleted) or None, keys, joined, None, joined, None]


def page(count, *, deleted=(), limit=10, with_deleted=False):
    shape = RowShape("DE", 7, {}, frozenset())
    return layout().page(shape, record(count, deleted), fence_seq=9, limit=limit, with_deleted=with_deleted)


def test_a_table_says_of_each_row_where_it_is():
    table = page(3).table
    assert table.column_names == ["region_code", "key", "shard", "seq", "update_time", "deleted", "size"]
    assert table.to_pylist()[1] == {
        "region_code": "DE",
        "key": "k2",
        "shard": 7,
        "seq": 2,
        "update_time": EPOCH + timedelta(microseconds=2),
        "deleted": False,
        "size": 2,
    }
    table.validate(full=True)


def test_an_empty_table_has_the_same_schema():
    empty = page(0)
    assert empty.table.schema == page(3).table.schema == layout().schema
    assert (empty.count, empty.last_seq, empty.through_seq, empty.last_time) == (0, 0, 9, None)


def test_int64_keys_are_numbers():
    assert layout(KeyType.INT64).schema.field("key").type == pa.int64()


def test_deletions_are_left_out_and_counted_unless_they_are_wanted():
    left = page(3, deleted=(1, 3), limit=3)
    assert left.table.column("key").to_pylist() == ["k2"]
    assert (left.count, left.last_seq, left.is_full, left.through_seq) == (1, 3, True, 3)
    assert left.last_time == EPOCH + timedelta(microseconds=2)
    assert page(3, deleted=(1, 3), with_deleted=True).table.column("deleted").to_pylist() == [True, False, True]
    assert page(2, deleted=(1, 2)).count == 0


def test_a_part_reaches_as_far_as_its_rows():
    whole = page(5)
    first, second = whole.part(0, 2), whole.part(2, 5)
    assert (first.table.column("key").to_pylist(), first.through_seq, first.is_full) == (["k1", "k2"], 2, True)
    assert (second.table.column("key").to_pylist(), second.through_seq, second.is_full) == (
        ["k3", "k4", "k5"],
        9,
        False,
    )
    assert (second.seq_at(0), second.key_at(1), second.part(1, 2).seq_at(0)) == (3, "k4", 4)
    assert second.time_at(0).tzinfo is UTC


def test_a_page_of_a_table_has_no_rows_and_says_so():
    with pytest.raises(InvalidJob) as raised:
        _ = page(1).rows
    assert raised.value.field_name == "format"
    assert "k1" not in repr(page(1))
