"""Filters of listings: text to a condition on a dataset's columns.

The language is a subset of AIP-160: `spend >= 100 AND (name = "Li" OR NOT vip = true)`. A comparison with a column that
is null is false, except by `!=`; `column = null` asks for it. Strings compare by code points, the same in every IDC.
A filter has a shape, which is compiled once, and arguments, which travel beside it: no literal gets into a statement.
Errors say where, never what stands there (law L1).
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import and_, bindparam, false, func, not_, or_

from policy.errors import InvalidValue, UnknownColumn
from policy.model import ColumnType

if TYPE_CHECKING:
    from collections.abc import Callable

    from lark import Lark, Token
    from sqlalchemy import ColumnElement, Table

    from policy.model import Dataset

MAX_LENGTH: Final = 4096
MAX_COMPARISONS: Final = 100
MAX_DEPTH: Final = 32

_INT64: Final = range(-(1 << 63), 1 << 63)
_MAX_EXPONENT: Final = 1000
_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)

_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EQUALITY: Final = ("=", "!=")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column against an argument, or against null (`parameter` empty)."""

    column: str
    operator: str
    parameter: str


@dataclass(frozen=True, slots=True)
class Negation:
    """NOT."""

    of: Shape


@dataclass(frozen=True, slots=True)
class Junction:
    """AND or OR."""

    is_conjunction: bool
    of: tuple[Shape, ...]


Shape = Comparison | Negation | Junction


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on the columns of one dataset."""

    columns: frozenset[str]
    """Columns that it looks at: none of them may be withheld from the asker."""
    shape: Shape
    arguments: tuple[object, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments in a statement."""
        return tuple(f"f{index}" for index in range(len(self.arguments)))


def build_condition(shape: Shape, table: Table) -> ColumnElement[bool]:
    """The shape as SQL on the dataset's table; true or false, never null."""
    if isinstance(shape, Negation):
        return not_(build_condition(shape.of, table))
    if isinstance(shape, Junction):
        parts = [build_condition(part, table) for part in shape.of]
        return and_(*parts) if shape.is_conjunction else or_(*parts)
    stored = table.c[shape.column]
    if not shape.parameter:
        return stored.is_(None) if shape.operator == "=" else stored.is_not(None)
    argument = bindparam(shape.parameter, type_=stored.type)
    if shape.operator == "!=":
        return stored.is_distinct_from(argument)
    ordered = stored.collate("C") if stored.type.python_type is str else stored
    return func.coalesce(_COMPARE[shape.operator](ordered, argument), false())


def parse_filter(text: str, dataset: Dataset) -> Filter:
    """Reads a filter.

    Raises:
        InvalidValue: it is not in the language, too large, or compares a column with a literal of another type.
        UnknownColumn: the dataset has no such column.
    """
    from lark.exceptions import UnexpectedInput, UnexpectedToken  # noqa: PLC0415 (few listings have a filter)

    if len(text) > MAX_LENGTH:
        raise _refuse(f"is longer than {MAX_LENGTH} characters")
    builder = _Builder(dataset)
    try:
        tree = _parser().parse(text)
        shape = builder.build(tree, 0)
    except UnexpectedInput as error:
        # What is missing at the end, lark reports at the last thing that is there.
        is_end = isinstance(error, UnexpectedToken) and error.token.type == "$END"
        where = "at its end" if is_end or error.pos_in_stream is None else f"at character {error.pos_in_stream + 1}"
        failure = _refuse(f"cannot be read {where}; AND and OR need parentheses between them")
    else:
        return Filter(frozenset(builder.columns), shape, tuple(builder.arguments))
    raise failure


@cache
def _parser() -> Lark:
    from lark import Lark  # noqa: PLC0415 (few listings have a filter)

    return Lark.open("filter.lark", rel_to=__file__, parser="lalr", maybe_placeholders=False)


def _refuse(why: str) -> InvalidValue:
    return InvalidValue(f"the filter {why}", field_name="filter")


class _Builder:
    """Turns a parse tree into a shape, and collects columns and arguments on the way."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.columns: set[str] = set()
        self.arguments: list[object] = []
        self._comparisons = 0

    def build(self, tree: Any, depth: int) -> Shape:  # noqa: ANN401 (lark's trees are untyped)
        if depth > MAX_DEPTH:
            raise _refuse(f"is nested deeper than {MAX_DEPTH}")
        if tree.data == "comparison":
            return self._compare(*cast("tuple[Token, Token, Token]", tuple(tree.children)))
        parts = tuple(self.build(child, depth + 1) for child in tree.children)
        if tree.data == "negation":
            return Negation(parts[0])
        return Junction(tree.data == "conjunction", parts)

    def _compare(self, name: Token, comparator: Token, literal: Token) -> Comparison:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise _refuse(f"has more than {MAX_COMPARISONS} comparisons")
        column = self._dataset.columns.get(str(name))
        if column is None:
            raise UnknownColumn(f"dataset {self._dataset.name} has no column {name}", field_name="filter")
        self.columns.add(column.name)
        symbol = str(comparator)
        if literal.type == "NULL":
            if symbol not in _EQUALITY:
                raise _refuse(f"orders column {column.name} by null; only = and != go with it")
            return Comparison(column.name, symbol, "")
        parse = _LITERALS.get((column.type, literal.type))
        if parse is None:
            raise _refuse(f"compares column {column.name}, of type {column.type}, with a literal of another type")
        if column.type is ColumnType.BOOL and symbol not in _EQUALITY:
            raise _refuse(f"orders column {column.name}, of type bool; only = and != go with it")
        try:
            value = parse(str(literal))
        except (ValueError, InvalidOperation, OverflowError):
            value = None
        if value is None:
            raise _refuse(f"compares column {column.name}, of type {column.type}, with a literal that is not one")
        self.arguments.append(value)
        return Comparison(column.name, symbol, f"f{len(self.arguments) - 1}")


def _string(literal: str) -> str | None:
    value = _ESCAPE.sub(r"\1", literal[1:-1])
    value.encode()  # a lone surrogate is a ValueError
    return None if "\0" in value else value


def _int64(literal: str) -> int | None:
    value = int(literal)
    return value if value in _INT64 else None


def _double(literal: str) -> float | None:
    value = float(literal)
    return None if value in (float("inf"), float("-inf")) else value


def _decimal(literal: str) -> Decimal | None:
    value = Decimal(literal)
    return value if value.is_finite() and abs(value.adjusted()) < _MAX_EXPONENT else None


def _timestamp(literal: str) -> datetime | None:
    text = literal[1:-1]
    return datetime.fromisoformat(text.upper()).astimezone(UTC) if _TIMESTAMP.fullmatch(text) else None


_LITERALS: Final[dict[tuple[ColumnType, str], Callable[[str], object]]] = {
    (ColumnType.STRING, "STRING"): _string,
    (ColumnType.INT64, "NUMBER"): _int64,
    (ColumnType.DOUBLE, "NUMBER"): _double,
    (ColumnType.DECIMAL, "NUMBER"): _decimal,
    (ColumnType.DECIMAL, "STRING"): lambda literal: _decimal(literal[1:-1]),
    (ColumnType.TIMESTAMP, "STRING"): _timestamp,
    (ColumnType.BOOL, "TRUE"): lambda _: True,
    (ColumnType.BOOL, "FALSE"): lambda _: False,
}
"""How a literal of a kind becomes a value of a column; bytes and json compare with null only."""
