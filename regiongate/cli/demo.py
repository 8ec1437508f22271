"""`regiongate demo`: five data centres, real rows, and proof of where they lie."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (typer reads the annotations)
from typing import Annotated

import typer

from regiongate.cli.context import run_async
from regiongate.cli.output import say

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="An empty folder for the data; a temporary one when not given.", show_default=False),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the stack up until Ctrl-C, and its data in place.")
    ] = False,
) -> None:
    """Run the demo: about a minute, no network. Exit code 0 only when every row lies where its law says."""
    from regiongate.demo.run import run  # noqa: PLC0415 (the demo's data takes a while to import)

    say("regiongate demo: five data centres on this machine, with real etcd and PostgreSQL")
    code = run_async(run(data_dir, keep=keep))
    raise typer.Exit(code)
