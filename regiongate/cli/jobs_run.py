"""`regiongate jobs run MODULE...`: one job runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regiongate.cli.settings_options import settings_command
from regionjobs.settings import RunnerSettings
from runtime.lifecycle import collected_later

if TYPE_CHECKING:
    import typer


def _run(settings: RunnerSettings, modules: list[str]) -> int:
    # Loaded once the settings stand: a wrong flag, or --help, need not wait for it.
    with collected_later():
        from regiongate.cli.job_gateway import JobGateway  # noqa: PLC0415
        from regionjobs.loading import load  # noqa: PLC0415
        from regionjobs.main import run  # noqa: PLC0415

        jobs = load(modules, settings.jobs)
    files = (settings.gateway_ca_file, settings.gateway_cert_file, settings.gateway_key_file)
    return run(settings, jobs, JobGateway(*files))


def add_run(app: typer.Typer) -> None:
    """Mounts the command."""
    settings_command(
        app,
        RunnerSettings,
        _run,
        name="run",
        words=("MODULE", "Modules that define jobs: dotted names, or files that end in .py."),
        help_text="Run the jobs of some modules over the rows that this IDC owns.",
    )
