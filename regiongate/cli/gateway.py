"""`regiongate gateway`: one gateway process."""

from __future__ import annotations

import typer

from gateway.main import run
from gateway.settings import GatewaySettings
from regiongate.cli.settings_options import settings_command

app = typer.Typer()
settings_command(app, GatewaySettings, run)
