"""Filters: what is read, what is refused, and what a refusal says."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InvalidInput, InvalidValue, UnknownColumn
from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.filter import MAX_COMPARISONS, MAX_DEPTH, MAX_LENGTH, Comparison, Junction, Negation, parse_filter

WIDE = Dataset("wide", KeyType.STRING, {f"{kind}_": Column(f"{kind}_", kind) for kind in ColumnType})


def test_a_comparison_names_its_column_and_keeps_its_literal_apart() -> None:
    found = parse_filter('string_ = "Li"', WIDE)
    assert (found.columns, found.shape, found.arguments) == (
        frozenset({"string_"}),
        Comparison("string_", "=", "f0"),
        ("Li",),
    )


def test_filters_that_differ_in_literals_only_have_one_shape() -> None:
    one, other = parse_filter('string_="a" AND int64_<1', WIDE), parse_filter("string_ = 'b'\nAND int64_ < 22", WIDE)
    assert one.shape == other.shape
    assert one.arguments != other.arguments


def test_precedence_is_said_by_parentheses() -> None:
    found = parse_filter("bool_ = true AND (NOT int64_ = 1 OR int64_ = 2)", WIDE)
    assert found.shape == Junction(
        True,
        (
            Comparison("bool_", "=", "f0"),
            Junction(False, (Negation(Comparison("int64_", "=", "f1")), Comparison("int64_", "=", "f2"))),
        ),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('string_ = "a\\"b\\\\c"', 'a"b\\c'),
        ("string_ = 'it\\'s'", "it's"),
        ("int64_ = -9223372036854775808", -(1 << 63)),
        ("double_ = -1.5e3", -1500.0),
        ("decimal_ = 0.10", Decimal("0.10")),
        ('decimal_ = "12.5"', Decimal("12.5")),
        ("bool_ = false", False),
        ('timestamp_ = "2026-01-02T03:04:05.5+01:00"', datetime(2026, 1, 2, 2, 4, 5, 500_000, tzinfo=UTC)),
    ],
)
def test_literals_become_values_of_their_column(text: str, value: object) -> None:
    assert parse_filter(text, WIDE).arguments == (value,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "string_",
        "string_ = ",
        'string_ = "open',
        '"a" = string_',
        'string_ == "a"',
        'string_ = "a" bool_ = true',
        "int64_ = 1 AND int64_ = 2 OR int64_ = 3",
        "int64_ = 1.5",
        "int64_ = 9223372036854775808",
        'int64_ = "1"',
        "double_ = 1e999",
        "decimal_ = 1e99999",
        'decimal_ = "NaN"',
        "string_ = 1",
        "string_ < null",
        "bool_ < true",
        "bool_ = 1",
        'bytes_ = "x"',
        'json_ = "{}"',
        'timestamp_ = "2026-01-02T03:04:05"',
        'timestamp_ = "2026-01-02T03:04:05.1234567Z"',
        'timestamp_ = "2026-13-02T03:04:05Z"',
        'timestamp_ = "0001-01-01T00:00:00+10:00"',
        'string_ = "a\\nb"',
        'string_ = "a\x00b"',
        'string_ = "\ud800"',
        "int64_ = 1 AND " * MAX_COMPARISONS + "int64_ = 1",
        "NOT " * (MAX_DEPTH + 2) + "int64_ = 1",
        " " * MAX_LENGTH + "int64_ = 1",
    ],
)
def test_what_is_not_in_the_language_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_filter(text, WIDE)
    assert caught.value.field_name == "filter"


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownColumn, match="no column nope") as caught:
        parse_filter("nope = 1", WIDE)
    assert caught.value.field_name == "filter"


def test_a_refusal_says_where() -> None:
    with pytest.raises(InvalidValue, match="at character 15"):
        parse_filter('string_ = "a" & bool_ = true', WIDE)
    with pytest.raises(InvalidValue, match="at its end"):
        parse_filter('string_ = "a" AND', WIDE)


@given(st.text(max_size=40), st.sampled_from(["string_", "int64_", "decimal_", "timestamp_", "bool_"]))
def test_law_l1_no_refusal_repeats_what_was_written(literal: str, column: str) -> None:
    marker = f"marker{literal}"
    for text in (
        f'{column} = "{marker}"',
        f"{column} = {marker}",
        f"{column} = '{marker}",
        f'({column} < "{marker}" OR',
    ):
        with contextlib.suppress(InvalidInput):
            parse_filter(text, WIDE)
            continue
        with pytest.raises(InvalidInput) as caught:
            parse_filter(text, WIDE)
        assert "marker" not in repr(caught.value)
        assert caught.value.__context__ is None


@given(st.text(alphabet="()\"'\\ANDORT<>=!abcdefnull_ 0123456789.-e", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_filter(text, WIDE)
    except InvalidInput:
        return
    assert found.columns <= WIDE.columns.keys()
