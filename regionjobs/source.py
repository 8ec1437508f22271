"""Sources of one's own: a table that was there before, or any callable, with one increasing position.

The positions must be in the order in which rows become visible: a row that appears below a position that has been read
already is not seen any more. A dataset's own sequence keeps that by its fence; a serial column alone does not, when
several writers insert at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from policy.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rowstore.database import Database

    Select = Callable[[int, int], Awaitable[Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of a source, and what says who owns it."""

    position: int
    region_code: str | None
    """None or empty: nobody owns it (law L8)."""
    key: str | int
    value: Any
    """As the source gave it."""


class Source(Protocol):
    """Where a global scan reads."""

    def bind(self, database: Database) -> Callable[[int, int], Awaitable[list[SourceRow]]]:
        """A function of `position` and `limit`: rows above that position, in order, at most so many."""
        ...


@dataclass(frozen=True, slots=True)
class AdoptedTable:
    """A table in each IDC's database that regiongate did not make."""

    table: str
    position: str
    """Column of type bigint or integer, unique and increasing; there is an index on it."""
    region_code: str
    """Column with the RegionCode."""
    key: str
    """Column that decides the shard, as a dataset's key does: text or an integer."""
    columns: tuple[str, ...] = ()
    """Further columns that batches hold; all when empty."""

    def __post_init__(self) -> None:
        """Raises `InvalidJob` for a name that is missing."""
        for name in ("table", "position", "region_code", "key"):
            if not getattr(self, name):
                raise InvalidJob(f"AdoptedTable: {name} must be named", field_name="source")

    def bind(self, database: Database) -> Callable[[int, int], Awaitable[list[SourceRow]]]:
        """See `Source`."""
        wanted = (self.position, self.region_code, self.key, *self.columns) if self.columns else ()
        columns = ", ".join(map(_quote, dict.fromkeys(wanted))) or "*"
        table = ".".join(map(_quote, self.table.split(".")))
        position = _quote(self.position)
        statement = f"SELECT {columns} FROM {table} WHERE {position} > $1::bigint ORDER BY {position} LIMIT $2::bigint"  # noqa: S608 (quoted)

        async def select(after: int, limit: int) -> list[SourceRow]:
            records = await database.fetch(statement, after, limit, is_repeatable=True)
            found = [
                SourceRow(it[self.position], it[self.region_code], it[self.key], dict(it.items())) for it in records
            ]
            _check(found, after, limit)
            return found

        return select


@dataclass(frozen=True, slots=True)
class CallableSource:
    """Any `async def select_batch(position, limit)` that returns rows above the position, in order."""

    select_batch: Select
    position: str | Callable[[Any], int] = "position"
    """Name of the item or attribute, or a function of the row."""
    region_code: str | Callable[[Any], str | None] = "region_code"
    key: str | Callable[[Any], str | int] = "key"

    def bind(self, database: Database) -> Callable[[int, int], Awaitable[list[SourceRow]]]:  # noqa: ARG002 (its own affair)
        """See `Source`."""

        async def select(after: int, limit: int) -> list[SourceRow]:
            rows = await self.select_batch(after, limit)
            found = [
                SourceRow(_read(self.position, it), _read(self.region_code, it), _read(self.key, it), it) for it in rows
            ]
            _check(found, after, limit)
            return found

        return select


def _check(rows: Sequence[SourceRow], after: int, limit: int) -> None:
    """A source that breaks its promise would lose rows: better no batch than a wrong one.

    What it gave is not quoted: it is of a row (law L1).
    """
    last: int = after
    for row in rows:
        _check_types(row)
        if row.position <= last:
            raise InvalidJob(
                "source: each position must be above the one before, and none given twice", field_name="source"
            )
        last = row.position
    if len(rows) > limit:
        raise InvalidJob(f"source: {len(rows)} rows, where at most {limit} were asked for", field_name="source")


def _check_types(row: SourceRow) -> None:
    for name, value, is_right, words in (
        ("position", row.position, isinstance(row.position, int), "a whole number"),
        ("region_code", row.region_code, isinstance(row.region_code, str | None), "a text, or nothing"),
        ("key", row.key, isinstance(row.key, str | int), "a text or a whole number"),
    ):
        if not is_right or isinstance(value, bool):
            raise InvalidJob(f"source: {name} must be {words}, not {type(value).__name__}", field_name="source")


def _read(how: str | Callable[[Any], Any], row: Any) -> Any:  # noqa: ANN401 (rows are whatever the source gives)
    if not isinstance(how, str):
        return how(row)
    return row[how] if hasattr(row, "__getitem__") else getattr(row, how)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
