"""Which gateway a command talks to, and how its coroutine is run.

The target is `--target` (or `REGIONGATE_TARGET`), a comma list of host:port. Without it, the running stack of
`--data-dir` (or `REGIONGATE_DATA_DIR`, or `./data`) is looked up in its `stack.json`; `--idc` chooses the entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from regiongate.cli.failures import CommandFailed
from runtime.stack_file import StackFile, StackFileInvalid

if TYPE_CHECKING:
    from collections.abc import Coroutine

TargetOption = Annotated[
    str, typer.Option(envvar="REGIONGATE_TARGET", help="Gateways to talk to, host:port by comma.", show_default=False)
]
DataDirOption = Annotated[Path, typer.Option(envvar="REGIONGATE_DATA_DIR", help="Folder of the embedded stack.")]
IdcOption = Annotated[
    str, typer.Option(envvar="REGIONGATE_IDC", help="Enter by the gateway of this IDC.", show_default=False)
]

T = TypeVar("T")

DEFAULT_DATA_DIR = Path("data")


def load_stack(data_dir: Path) -> StackFile:
    """Reads the folder's `stack.json`; raises `CommandFailed` when there is none."""
    try:
        return StackFile.load(data_dir)
    except FileNotFoundError:
        raise CommandFailed(
            "NO_TARGET",
            f"no --target given and no running stack in {data_dir}",
            "start one with `regiongate up`, or give --target or --data-dir",
        ) from None
    except StackFileInvalid as error:
        raise CommandFailed("BAD_STACK_FILE", str(error)) from None


def resolve_target(target: str = "", data_dir: Path = DEFAULT_DATA_DIR, idc: str = "") -> str:
    """The gateways to talk to, host:port by comma, best first."""
    if target:
        return target
    stack = load_stack(data_dir)
    if not idc:
        return ",".join(entry.gateway for entry in stack.idcs.values())
    if idc not in stack.idcs:
        raise CommandFailed("UNKNOWN_IDC", f"the stack has no IDC {idc}", f"it has {', '.join(stack.idcs)}")
    return stack.idcs[idc].gateway


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine under uvloop; Ctrl-C cancels it."""
    import uvloop  # noqa: PLC0415 (keeps commands that never wait lean)

    return uvloop.run(coroutine)
