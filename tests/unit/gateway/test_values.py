from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import MAX_JSON_DEPTH, MAX_ROW_BYTES
from gateway.values import (
    PARSERS,
    SETTERS,
    check_columns,
    check_request_id,
    decode_key,
    decode_row,
    decode_values,
    encode_row,
    read_time,
    set_key,
    set_time,
)
from policy.errors import InvalidValue, LimitReached, UnknownColumn
from policy.model import Column, ColumnType, Dataset, KeyType
from regiongate.v1 import types_pb2
from regiongate.v1.types_pb2 import Key, Value
from rowstore.model import StoredRow

DATASET = Dataset("things", KeyType.STRING, {f"c_{kind}": Column(f"c_{kind}", kind) for kind in ColumnType})
COUNTERS = Dataset("counters", KeyType.INT64, {"n": Column("n", ColumnType.INT64)})

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
COLUMN_VALUES = {
    ColumnType.STRING: TEXT,
    ColumnType.INT64: INT64,
    ColumnType.DOUBLE: st.floats(allow_nan=False),
    ColumnType.BOOL: st.booleans(),
    ColumnType.BYTES: st.binary(max_size=40),
    ColumnType.TIMESTAMP: st.datetimes(timezones=st.just(UTC)),
    ColumnType.DECIMAL: st.decimals(allow_nan=False, allow_infinity=False, places=6).map(lambda d: d or abs(d)),
    ColumnType.JSON: st.recursive(
        st.none() | st.booleans() | INT64 | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    ).map(json.dumps),
}
ROW_VALUES = st.fixed_dictionaries({f"c_{kind}": st.none() | values for kind, values in COLUMN_VALUES.items()})


@given(ROW_VALUES, TEXT.filter(bool), INT64, st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_row_survives_the_way_to_proto_and_back(values, key, version, time):
    row = StoredRow("DE", key, version, time, values)
    message = types_pb2.Row.FromString(encode_row(row, DATASET).SerializeToString())
    assert decode_row(message, DATASET) == row


def test_a_row_that_a_peer_encoded_is_passed_on_untouched():
    message = types_pb2.Row(region_code="DE")
    assert encode_row(message, DATASET) is message


def test_the_tables_cover_every_column_type():
    assert set(SETTERS) == set(PARSERS) == set(ColumnType)


GOOD_KIND = {
    ColumnType.STRING: Value(string_value="x"),
    ColumnType.INT64: Value(int64_value=1),
    ColumnType.DOUBLE: Value(double_value=1.5),
    ColumnType.BOOL: Value(bool_value=True),
    ColumnType.BYTES: Value(bytes_value=b"x"),
    ColumnType.TIMESTAMP: Value(timestamp_value={"seconds": 1}),
    ColumnType.DECIMAL: Value(decimal_value="1.50"),
    ColumnType.JSON: Value(json_value="{}"),
}


@pytest.mark.parametrize("column_type", ColumnType)
@pytest.mark.parametrize("given_type", ColumnType)
def test_a_value_of_another_type_is_refused_and_named_by_column_only(column_type, given_type):
    cells = {f"c_{column_type}": GOOD_KIND[given_type]}
    if column_type is given_type:
        assert decode_values(DATASET, cells)[f"c_{column_type}"] is not None
        return
    with pytest.raises(InvalidValue, match=f"column c_{column_type}: the value must be") as caught:
        decode_values(DATASET, cells)
    assert caught.value.field_name == f"columns.c_{column_type}"


@pytest.mark.parametrize("column_type", ColumnType)
def test_null_is_said_and_never_implied(column_type):
    """Law L8: an unset kind is no value."""
    name = f"c_{column_type}"
    assert decode_values(DATASET, {name: Value(null_value=types_pb2.NULL_VALUE_NULL)}) == {name: None}
    with pytest.raises(InvalidValue, match="no kind of value is set"):
        decode_values(DATASET, {name: Value()})
    with pytest.raises(InvalidValue, match="NULL_VALUE_NULL"):
        decode_values(DATASET, {name: Value(null_value=types_pb2.NULL_VALUE_UNSPECIFIED)})


MARKER = "s3cretmarker"


BAD_VALUES = [
    ("c_string", Value(string_value=f"{MARKER}\0"), r"U\+0000"),
    ("c_decimal", Value(decimal_value=f"1{MARKER}"), "plain number"),
    ("c_decimal", Value(decimal_value="1e5"), "plain number"),
    ("c_decimal", Value(decimal_value="NaN"), "plain number"),
    ("c_decimal", Value(decimal_value="+1"), "plain number"),
    ("c_decimal", Value(decimal_value="1."), "plain number"),
    ("c_decimal", Value(decimal_value="٣"), "plain number"),
    ("c_decimal", Value(decimal_value="1\n"), "plain number"),
    ("c_decimal", Value(decimal_value="9" * 1003), "at most 1000 digits"),
    ("c_json", Value(json_value=f'{{"{MARKER}": NaN}}'), "not JSON"),
    ("c_json", Value(json_value=f'{{"{MARKER}"'), "not JSON"),
    ("c_json", Value(json_value=""), "not JSON"),
    ("c_json", Value(json_value="1 2"), "not JSON"),
    ("c_json", Value(json_value=r'"a\u0000b"'), "surrogate pair"),
    ("c_json", Value(json_value=r'{"\ud83d": 1}'), "surrogate pair"),
    ("c_json", Value(json_value="[" * 100_000 + "]" * 100_000), "not JSON"),
    ("c_json", Value(json_value="[" * (MAX_JSON_DEPTH + 1) + "]" * (MAX_JSON_DEPTH + 1)), "nested deeper"),
    ("c_timestamp", Value(timestamp_value={"seconds": 1, "nanos": 1}), "microseconds"),
    ("c_timestamp", Value(timestamp_value={"seconds": 1, "nanos": -1000}), "years 1 to 9999"),
    ("c_timestamp", Value(timestamp_value={"seconds": 1 << 40}), "years 1 to 9999"),
    ("c_timestamp", Value(timestamp_value={"seconds": -(1 << 40)}), "years 1 to 9999"),
]


@pytest.mark.parametrize(("name", "cell", "rule"), BAD_VALUES, ids=map(str, range(len(BAD_VALUES))))
def test_a_malformed_value_is_refused_by_rule_without_being_repeated(name, cell, rule):
    """Laws L1 and L8."""
    with pytest.raises(InvalidValue, match=rule) as caught:
        decode_values(DATASET, {name: cell})
    assert MARKER not in str(caught.value)
    assert caught.value.field_name == f"columns.{name}"


def test_escapes_that_only_look_like_nul_are_accepted():
    for text in (r'"\\u0000"', r'"\ud83d\ude00"', '{"a": ["\\\\ud83d"]}', '"[{[{"', "1e999", "9" * 5000):
        assert decode_values(DATASET, {"c_json": Value(json_value=text)}) == {"c_json": text}


def test_decimals_keep_their_digits_and_lose_a_negative_zero():
    assert str(decode_values(DATASET, {"c_decimal": Value(decimal_value="-12.50")})["c_decimal"]) == "-12.50"
    zero = decode_values(DATASET, {"c_decimal": Value(decimal_value="-0.0")})["c_decimal"]
    assert str(zero) == "0.0"
    big = StoredRow("DE", "k", 1, datetime.now(UTC), {"c_decimal": Decimal("1E+20")})
    assert encode_row(big, DATASET).columns["c_decimal"].decimal_value == "1" + "0" * 20


def test_the_epoch_itself_is_a_timestamp_and_not_nothing():
    row = StoredRow("DE", "k", 1, datetime.now(UTC), {"c_timestamp": datetime(1970, 1, 1, tzinfo=UTC)})
    assert decode_row(encode_row(row, DATASET), DATASET) == row


def test_the_last_microsecond_of_the_year_9999_is_stored_and_nothing_later():
    last = datetime.max.replace(tzinfo=UTC)
    row = StoredRow("DE", "k", 1, last - timedelta(days=1), {"c_timestamp": last})
    assert decode_row(encode_row(row, DATASET), DATASET) == row


@pytest.mark.parametrize("instant", [datetime.min, datetime.max])  # noqa: DTZ901 (as the driver gives infinities)
def test_the_first_and_the_last_instant_come_back_from_the_driver_without_a_zone(instant):
    message = Timestamp()
    set_time(message, instant)
    assert read_time(message) == instant.replace(tzinfo=UTC)


def test_an_unknown_column_is_named_and_cut_short():
    with pytest.raises(UnknownColumn, match="no column 'nope'"):
        decode_values(DATASET, {"nope": Value(int64_value=1)})
    with pytest.raises(UnknownColumn) as caught:
        decode_values(DATASET, {"n" * 10_000: Value(int64_value=1)})
    assert len(str(caught.value)) < 200
    with pytest.raises(UnknownColumn):
        check_columns(DATASET, ["c_string", "nope"])
    assert check_columns(DATASET, []) is None
    assert check_columns(DATASET, ["c_string"]) == {"c_string"}


def test_a_row_has_at_most_one_mebibyte_of_utf8():
    fits = {"c_string": Value(string_value="x" * (MAX_ROW_BYTES - 10)), "c_bytes": Value(bytes_value=b"x" * 10)}
    assert len(decode_values(DATASET, fits)) == 2
    with pytest.raises(LimitReached, match="larger than 1048576"):
        decode_values(DATASET, fits | {"c_bytes": Value(bytes_value=b"x" * 11)})
    with pytest.raises(LimitReached):
        decode_values(DATASET, {"c_string": Value(string_value="ü" * (MAX_ROW_BYTES // 2 + 1))})


BAD_KEYS = [
    (DATASET, Key(), "not set"),
    (DATASET, Key(int64_key=1), "string_key, and this one is int64_key"),
    (DATASET, Key(string_key=""), "empty"),
    (DATASET, Key(string_key=f"{MARKER}\0"), r"U\+0000"),
    (DATASET, Key(string_key="x" * 513), "512 bytes"),
    (DATASET, Key(string_key="ü" * 257), "512 bytes"),
    (COUNTERS, Key(), "not set"),
    (COUNTERS, Key(string_key=MARKER), "int64_key, and this one is string_key"),
]


@pytest.mark.parametrize(("dataset", "key", "rule"), BAD_KEYS, ids=map(str, range(len(BAD_KEYS))))
def test_a_broken_key_is_refused_without_being_repeated(dataset, key, rule):
    """Laws L1 and L8."""
    with pytest.raises(InvalidValue, match=rule) as caught:
        decode_key(dataset, key)
    assert caught.value.field_name == "key"
    assert MARKER not in str(caught.value)


@pytest.mark.parametrize("key", ["x" * 512, "ü" * 256, -(1 << 63), 0], ids=["ascii", "wide", "lowest", "zero"])
def test_keys_up_to_the_limit_are_accepted(key):
    message = Key()
    set_key(message, key)
    assert decode_key(DATASET if isinstance(key, str) else COUNTERS, message) == key


def test_request_ids_are_short_printable_ascii():
    assert check_request_id("") == ""
    assert check_request_id("a" * 64) == "a" * 64
    for bad in ("a" * 65, "ü", "a\n", "\t"):
        with pytest.raises(InvalidValue, match="64 characters"):
            check_request_id(bad)
