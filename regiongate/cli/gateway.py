"""`regiongate gateway`: one gateway process."""

from __future__ import annotations

import typer

from gateway.settings import GatewaySettings
from regiongate.cli.settings_options import settings_command
from runtime.lifecycle import collected_later

app = typer.Typer(add_completion=False)


def _run(settings: GatewaySettings) -> int:
    # Loaded once the settings stand: a wrong flag, or --help, need not wait for it.
    with collected_later():
        from gateway.main import run  # noqa: PLC0415

    return run(settings)


settings_command(app, GatewaySettings, _run)
