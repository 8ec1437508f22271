"""`regiongate controller`: one controller process; the elected one of all that run does the work."""

from __future__ import annotations

import typer

from policy.controller.main import ControllerSettings, run
from regiongate.cli.settings_options import settings_command

app = typer.Typer()
settings_command(app, ControllerSettings, run)
