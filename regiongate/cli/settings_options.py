"""Turns a settings class into command-line options: one for each field, with its description as the help text.

An option that is not given is left to the environment and the field's default, so flags win over variables.
"""

from __future__ import annotations

import inspect
from datetime import timedelta
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from runtime.config import ENV_PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo


def settings_command(app: typer.Typer, settings: type[Settings], run: Callable[[Any], int | None]) -> None:
    """Adds a command to `app` that builds the settings from its options and runs with them."""

    def command(**options: object) -> None:
        given = {name: value for name, value in options.items() if value is not None}
        raise typer.Exit(run(settings(**given)) or 0)

    own = set(inspect.get_annotations(settings))
    names = sorted(settings.model_fields, key=lambda name: name not in own)
    hints = {name: _option(name, settings.model_fields[name]) for name in names}
    command.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess] (read by typer)
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
            for name, hint in hints.items()
        ]
    )
    command.__annotations__ = hints
    command.__doc__ = settings.__doc__
    app.command()(command)


def _option(name: str, info: FieldInfo) -> object:
    flag = f"--{name.replace('_', '-')}"
    kind = _kind(info.annotation)
    declared = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    # In round brackets: rich takes square ones for markup.
    default = default_text(info)
    known = "required; " if info.is_required() else f"default: {default}; " if default else ""
    help_text = f"{info.description or ''} ({known}env: {ENV_PREFIX}{name.upper()})"
    return Annotated[kind | None, typer.Option(declared, help=help_text, show_default=False)]


def _kind(annotation: Any) -> Any:  # noqa: ANN401 (a type form)
    """The type that typer parses; what it does not know stays text, for pydantic to judge."""
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        return _kind(members[0]) if len(members) == 1 else str
    return annotation if annotation in (int, float, bool) else str


def default_text(info: FieldInfo) -> str:
    """A field's default as it is written in a flag or a variable; empty where there is none to speak of."""
    default = info.default
    if default in (PydanticUndefined, None, "", False) or isinstance(default, SecretStr):
        return ""
    if isinstance(default, timedelta):
        return f"{default.total_seconds():g}"
    return ",".join(default) if type(default) is tuple else str(default)
