"""`regiongate controller`: one controller process; the elected one of all that run does the work."""

from __future__ import annotations

import typer

from policy.controller.settings import ControllerSettings
from regiongate.cli.settings_options import settings_command
from runtime.lifecycle import collected_later

app = typer.Typer(add_completion=False)


def _run(settings: ControllerSettings) -> int:
    # Loaded once the settings stand: a wrong flag, or --help, need not wait for it.
    with collected_later():
        from policy.controller.main import run  # noqa: PLC0415

    return run(settings)


settings_command(app, ControllerSettings, _run)
