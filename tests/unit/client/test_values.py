"""Values of the SDK: what goes out, what comes back, and what is refused without being repeated."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import values
from policy.errors import InvalidValue
from regiongate.v1 import types_pb2

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
BY_TYPE = {
    "string": TEXT,
    "int64": st.integers(-(2**63), 2**63 - 1),
    "double": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "bytes": st.binary(),
    "timestamp": st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7, minutes=-30))])),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40),
    "json": JSON.filter(lambda value: value is not None),
}


def round_trip(cells: dict[str, object], types: dict[str, str]) -> dict[str, object]:
    row = types_pb2.Row()
    row.key.string_key = "k"
    values.set_columns(row.columns, cells, types)
    arrived = types_pb2.Row.FromString(row.SerializeToString())
    return dict(values.decode_row(arrived, values.decode_decision(types_pb2.Decision())).values)


@given(st.fixed_dictionaries({kind: st.none() | strategy for kind, strategy in BY_TYPE.items()}))
def test_every_value_of_every_type_comes_back_as_it_went_out(cells):
    back = round_trip(cells, {kind: kind for kind in BY_TYPE})
    assert back == cells
    assert all(type(back[kind]) is type(cells[kind]) for kind in BY_TYPE)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", 1),
        ("string", b"marker"),
        ("string", "\ud800marker"),
        ("int64", "marker"),
        ("int64", True),
        ("int64", 1.0),
        ("int64", 2**63),
        ("double", "marker"),
        ("double", False),
        ("double", 2**53 + 1),
        ("double", 10**400),
        ("bool", 1),
        ("bytes", "marker"),
        ("timestamp", datetime(2000, 1, 1)),  # noqa: DTZ001 (the point)
        ("timestamp", "2000-01-01T00:00:00Z"),
        ("decimal", 1.5),
        ("decimal", "marker"),
        ("decimal", Decimal("NaN")),
        ("decimal", Decimal("1E+100000")),
        ("decimal", True),
        ("json", float("nan")),
        ("json", {"marker": object()}),
        ("json", {"marker": {1, 2}}),
        ("nonsense", "marker"),
    ],
)
def test_what_does_not_fit_is_refused_naming_the_column_only_law_l1(kind, value):
    with pytest.raises(InvalidValue) as refused:
        round_trip({"col": value}, {"col": kind})
    assert "col" in refused.value.message
    assert refused.value.field_name == "columns.col"
    assert "marker" not in refused.value.message
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


def test_json_that_contains_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidValue):
        round_trip({"col": loop}, {"col": "json"})


@pytest.mark.parametrize(
    "value", ["text", 1, 1.5, True, b"x", datetime(2000, 1, 1, tzinfo=UTC), Decimal("1.5"), {"a": 1}, [1, 2]]
)
def test_a_column_not_heard_of_yet_goes_by_its_python_type(value):
    assert round_trip({"col": value}, {}) == {"col": value}


def test_a_python_type_that_no_column_has_is_refused():
    with pytest.raises(InvalidValue, match="object"):
        round_trip({"col": object()}, {})


def test_an_int_that_a_double_holds_exactly_may_go_into_one():
    assert round_trip({"col": 2**53}, {"col": "double"}) == {"col": float(2**53)}


@pytest.mark.parametrize("key", ["", "k", "ключ", 0, -1, 2**63 - 1, -(2**63)])
def test_keys_come_back_as_they_went_out(key):
    message = types_pb2.Key()
    values.set_key(message, key)
    assert values.decode_key(message) == key


@pytest.mark.parametrize("key", [True, 2**63, -(2**63) - 1, 1.5, None, b"marker", "marker\udcff"])
def test_a_key_that_is_none_is_refused_without_being_repeated_law_l1(key):
    with pytest.raises(InvalidValue) as refused:
        values.set_key(types_pb2.Key(), key)
    assert "marker" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_equal_decisions_are_one_object():
    wire = types_pb2.Decision(rule="europe", policy_revision=1, withheld=["a", "b"])
    first = values.decode_decision(wire)
    assert first.withheld == ("a", "b")
    assert values.decode_decision(types_pb2.Decision.FromString(wire.SerializeToString())) is first


def test_the_memory_of_decisions_is_bounded():
    for revision in range(3000):
        values.decode_decision(types_pb2.Decision(policy_revision=revision))
    assert len(values._decisions) <= values._MAX_DECISIONS


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("bytes", "AP8=", b"\x00\xff"),
        ("timestamp", "2000-01-01T00:00:00Z", datetime(2000, 1, 1, tzinfo=UTC)),
        ("decimal", "-1.50", Decimal("-1.50")),
    ],
)
def test_what_json_lacks_is_written_as_text(kind, text, value):
    assert values.from_text(kind, text) == value
    assert values.to_text(value) == text


@pytest.mark.parametrize(("kind", "text"), [("bytes", "?"), ("timestamp", "soon"), ("decimal", "much")])
def test_text_that_is_not_of_the_type_is_refused(kind, text):
    with pytest.raises(ValueError, match=r".*"):
        values.from_text(kind, text)
