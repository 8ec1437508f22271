"""From SQLAlchemy's description of a statement to the text that asyncpg runs.

Statements are built from the tables' metadata and compiled once for each dataset; parameters travel as arrays, and a
constant of ours is written into the text, where the planner sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    Text,
    bindparam,
    column,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect

from rowstore.model import FenceMode
from rowstore.tables import SYSTEM_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, FromClause, Table
    from sqlalchemy.sql import Executable
    from sqlalchemy.types import TypeEngine


_DIALECT: Final = asyncpg_dialect()


def literal(text: str) -> ColumnElement[str]:
    """A constant of the statement: no parameter to send."""
    escaped = text.replace("'", "''")
    return literal_column(f"'{escaped}'", Text)


SERVING: Final = literal(FenceMode.SERVING)


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL, and which of its caller's arguments stands at which `$n`."""

    sql: str
    arrange: Callable[[Sequence[Any]], Sequence[Any]]
    """Puts the caller's arguments into the order of the statement."""


def compile_statement(statement: Executable, names: Sequence[str]) -> Statement:
    """Compiles a statement whose parameters are handed over in the order of `names`."""
    compiled = statement.compile(dialect=_DIALECT)  # pyright: ignore[reportAttributeAccessIssue]: every Core statement has it
    positions = compiled.positiontup or []
    order = [names.index(name) for name in positions]
    # An itemgetter of one item would not give a tuple.
    return Statement(str(compiled), itemgetter(*order) if len(order) > 1 else tuple)


def value_names(table: Table) -> list[str]:
    """The columns of the policy, in the order of the table."""
    return [name for name in table.columns.keys() if name not in SYSTEM_COLUMNS]  # noqa: SIM118 (not a dict)


def rows_of(name: str, columns: Sequence[tuple[str, str, TypeEngine[Any]]]) -> FromClause:
    """Arrays as a table: for each column its name, its parameter and its type; and `ordinal`, from 1."""
    arrays = [bindparam(parameter, type_=ARRAY(sql_type)) for _, parameter, sql_type in columns]
    return (
        func.unnest(*arrays)
        .table_valued(
            *(column(column_name, sql_type) for column_name, _, sql_type in columns),
            with_ordinality="ordinal",
            name=name,
        )
        .render_derived()
    )
