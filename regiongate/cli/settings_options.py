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


_WORDS = "words"
"""Parameter that takes what is no option."""


def settings_command(
    app: typer.Typer,
    settings: type[Settings],
    run: Callable[..., int | None],
    *,
    name: str | None = None,
    help_text: str | None = None,
    words: tuple[str, str] | None = None,
) -> None:
    """Adds a command to `app` that builds the settings from its options and runs with them.

    Args:
        app: Where.
        settings: What the options are made from.
        run: Takes the settings, and the words if there are any.
        name: Of the command, where `app` has several.
        help_text: In place of what the settings say of themselves.
        words: Name and help of arguments that come beside the options, at least one.
    """

    def command(**options: object) -> None:
        said = options.pop(_WORDS, None)
        given = {name: value for name, value in options.items() if value is not None}
        chosen = settings(**given)
        raise typer.Exit((run(chosen) if said is None else run(chosen, said)) or 0)

    own = set(inspect.get_annotations(settings))
    names = sorted(settings.model_fields, key=lambda name: name not in own)
    hints = {name: _option(name, settings.model_fields[name]) for name in names}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in hints.items()
    ]
    if words is not None:
        hints[_WORDS] = Annotated[list[str], typer.Argument(metavar=f"{words[0]}...", help=words[1])]
        parameters.insert(0, inspect.Parameter(_WORDS, inspect.Parameter.KEYWORD_ONLY, annotation=hints[_WORDS]))
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess] (read by typer)
    command.__annotations__ = hints
    command.__doc__ = help_text or settings.__doc__
    app.command(name)(command)


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
