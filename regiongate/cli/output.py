"""What commands print: data on stdout as a table or JSON, talk on stderr.

Rich drops colours by itself when the stream is not a terminal or `NO_COLOR` is set.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Output(StrEnum):
    """Form of the data on stdout."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Form of the data on stdout.")]


@cache
def stdout() -> Console:
    """The console for data; wide when piped, so that no cell is cut."""
    return Console(soft_wrap=False, width=None if sys.stdout.isatty() else 200)


@cache
def stderr() -> Console:
    """The console for talk and progress."""
    return Console(stderr=True, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """Tells the person something, on stderr."""
    stderr().print(Text(text, style=style))


def emit_rows(rows: Iterable[Mapping[str, object]], columns: Sequence[str], output: Output) -> None:
    """Prints rows: as a table with these columns, or as one JSON array with every field."""
    if output is Output.JSON:
        emit_json(list(rows))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " ").upper(), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    stdout().print(table)


def emit_json(value: object) -> None:
    """Prints a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_to_json))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType] (any items)
    if isinstance(value, (set, frozenset)):
        return ", ".join(sorted(str(item) for item in value))  # pyright: ignore[reportUnknownVariableType] (any items)
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _to_json(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType] (any items)
    return value.isoformat() if isinstance(value, datetime) else str(value)
