"""`regiongate`: the one command.

Command modules are mounted by name and imported only when called, so that `regiongate up` does not pay for what
`regiongate rows` needs. Data goes to stdout, talk to stderr; exit codes are 0 (done), 1 (failed) and 2 (wrong usage).
An error is one line on stderr: `error: REASON: message`, with what to do about it where that is known.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS: Final[Mapping[str, str]] = {
    "demo": "Start five data centres and watch real rows go where the law says.",
    "up": "Run the whole embedded stack in the foreground.",
    "policy": "Check, plan, apply and read the rules.",
    "rows": "Read and write rows.",
    "shards": "Show who owns what, and move shards.",
    "idc": "Show the data centres, and empty one.",
    "jobs": "Show the jobs of all data centres, and give them orders.",
    "audit": "Read the audit trail, and check it.",
    "trace": "Show recorded traces.",
    "doctor": "Check that a stack is well, and say what is wrong.",
    "gateway": "Run one gateway.",
    "controller": "Run one controller.",
}
"""Command -> its line in the help; the module is `regiongate.cli.<command>`, with an `app` of typer's."""

FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130


class LazyGroup(TyperGroup):
    """Loads a command's module when the command is called, and none to list them."""

    _is_listing = False

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 (typer's context type is private)
        """Names of the commands, most used first."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401, ARG002
        """The command, with its module loaded unless it is only being listed."""
        if cmd_name not in COMMANDS:
            return None
        if self._is_listing:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name])
        command = typer.main.get_command(import_module(f"regiongate.cli.{cmd_name}").app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Prints the help without loading the commands."""
        self._is_listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._is_listing = False


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"regiongate {version('regiongate')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep rows under the law of their region, and reach them from anywhere."""


def main() -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code."""
    # GOAWAY lines of grpc's core would mix with our stderr, and its fork handlers abort the children that `up` starts.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        code = app(arguments, prog_name="regiongate", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has left, as `head` does; python would complain once more while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 (the last line of defence: every error becomes one line)
        from regiongate.cli.failures import report  # noqa: PLC0415 (only needed when something fails)

        return report(error)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
