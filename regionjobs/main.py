"""The runner's process: settings in, telemetry up, then the jobs until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from policy.records import Keys
from regionjobs.runner import Runner
from runtime import lifecycle
from runtime.etcd import EtcdClient
from runtime.telemetry.http import serve_telemetry
from runtime.telemetry.logs import setup_logging
from runtime.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regionjobs.definition import Job
    from regionjobs.runner import GatewayDoor
    from regionjobs.settings import RunnerSettings

log = structlog.get_logger("regionjobs")

_LEAVE_SECONDS: Final = 5.0
"""How long what handlers have left behind may keep the process, once everything of ours is closed."""
_GC_OBJECTS: Final = 20_000
"""New objects between two of the cheapest collections; Python's own number would look through each page's rows."""


def run(settings: RunnerSettings, jobs: Sequence[Job], door: GatewayDoor) -> int:
    """Runs jobs until it is told to stop; returns the process's exit code. Raises `InvalidJob`."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    setup_logging("runner", settings.idc, settings.log_format, settings.log_level)
    leaving = threading.Timer(_LEAVE_SECONDS, _leave)
    leaving.daemon = True
    try:
        return lifecycle.run(partial(_main, settings, tuple(jobs), door, leaving))
    finally:
        leaving.cancel()


async def _main(
    settings: RunnerSettings, jobs: Sequence[Job], door: GatewayDoor, leaving: threading.Timer, stop: asyncio.Event
) -> None:
    asyncio.get_running_loop().set_exception_handler(_report_unhandled)
    name = settings.runner or f"{settings.idc}-{secrets.token_hex(3)}"
    tracing = Tracing("runner", settings.idc, settings.trace_sample_ratio, settings.trace_directory, f"runner-{name}")
    try:
        async with EtcdClient(settings.etcd_settings()) as client:
            runner = Runner(
                settings,
                jobs,
                name=name,
                client=client,
                keys=Keys(settings.cluster),
                tracing=tracing,
                door=door,
                metrics_address=_metrics_address(settings.metrics_host, settings.metrics_port),
            )
            async with await serve_telemetry(settings.metrics_host, settings.metrics_port, runner.readiness):
                # What lives as long as the process is left out of every garbage collection.
                gc.collect()
                gc.freeze()
                gc.set_threshold(_GC_OBJECTS, 20, 50)
                await runner.serve(stop)
        leaving.start()
    finally:
        await asyncio.to_thread(tracing.shutdown)


def _metrics_address(host: str, port: int) -> str:
    """Base URL of the metrics for others; empty where the settings name no address that they could use."""
    if host in {"0.0.0.0", "::"} or not port:  # noqa: S104 (recognised, not bound)
        return ""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _leave() -> None:
    """Ends the process: tasks and threads that do not end would keep it for ever."""
    log.warning("handlers have left something behind that does not end; the process ends without it")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _report_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs what nobody awaited: most likely a handler's, so its text is left out, which may quote a row (law L1)."""
    error = context.get("exception")
    log.error("unhandled error in the event loop", what=context.get("message", ""), error=type(error).__name__)
