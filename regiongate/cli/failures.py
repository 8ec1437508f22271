"""One line for each failure, and the exit code that goes with it."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any, cast

import typer

from policy.errors import RegiongateError, Unavailable

FAILED = 1
WRONG_USAGE = 2


@dataclass(eq=False)
class CommandFailed(Exception):
    """A command cannot do what was asked; the hint says what to do about it."""

    reason: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return self.message


def report(error: BaseException) -> int:
    """Writes the error to stderr and returns the exit code."""
    if os.environ.get("REGIONGATE_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    while isinstance(error, BaseExceptionGroup):
        # The first of several errors at once is what a person can act on.
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    if (usage := _usage_text(error)) is not None:
        return _write("USAGE", usage, "see --help", WRONG_USAGE)
    if (call := error_from_call(error)) is not None:
        error = call
    if isinstance(error, CommandFailed):
        return _write(error.reason, error.message, error.hint, FAILED)
    if isinstance(error, RegiongateError):
        for finding in getattr(error, "findings", ()):
            typer.echo(str(finding), err=True)
        hint = "a retry may succeed" if isinstance(error, Unavailable) else ""
        return _write(error.reason, _with_fields(error), hint, FAILED)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _write("INTERNAL", text, "set REGIONGATE_DEBUG=1 to see where", FAILED)


def _write(reason: str, message: str, hint: str, code: int) -> int:
    told = message.removeprefix(f"{reason}: ")
    typer.echo(f"error: {reason}: {told}" + (f" ({hint})" if hint else ""), err=True)
    return code


def _with_fields(error: RegiongateError) -> str:
    """The message, followed by those travelling fields that it does not name by itself."""
    missing = [f"{name} {value}" for name, value in error.metadata.items() if value not in error.message]
    return f"{error.message} [{', '.join(missing)}]" if missing else error.message


def _usage_text(error: BaseException) -> str | None:
    """The text of typer's complaint about the command line, whose classes are private."""
    if getattr(error, "exit_code", None) == WRONG_USAGE and hasattr(error, "format_message"):
        return cast("Any", error).format_message()
    if not type(error).__module__.startswith("pydantic"):
        return None
    if hasattr(error, "errors"):
        return "; ".join(_setting_text(item) for item in cast("Any", error).errors(include_url=False))
    return str(error)


def _setting_text(item: dict[str, Any]) -> str:
    name = "-".join(str(part) for part in item["loc"]).replace("_", "-")
    text = "is required" if item["type"] == "missing" else str(item["msg"]).removeprefix("Value error, ")
    return f"--{name} {text}" if item["type"] == "missing" else f"--{name}: {text}" if name else text


def error_from_call(error: BaseException) -> RegiongateError | None:
    """The error that a gateway has ended a call with, or what its bare status means; None for any other exception."""
    if not type(error).__module__.startswith("grpc"):
        return None
    import grpc.aio  # noqa: PLC0415 (loaded already when this error exists)

    from gateway.status import error_from_rpc  # noqa: PLC0415

    return error_from_rpc(error) if isinstance(error, grpc.aio.AioRpcError) else None
