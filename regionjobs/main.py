"""The runner's process: settings in, telemetry up, then the jobs until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final

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

_GC_OBJECTS: Final = 20_000
"""New objects between two of the cheapest collections; Python's own number would look through each page's rows."""


def run(settings: RunnerSettings, jobs: Sequence[Job], door: GatewayDoor) -> int:
    """Runs jobs until it is told to stop; returns the process's exit code. Raises `InvalidJob`."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    setup_logging("runner", settings.idc, settings.log_format, settings.log_level)
    return lifecycle.run(partial(_main, settings, tuple(jobs), door))


async def _main(settings: RunnerSettings, jobs: Sequence[Job], door: GatewayDoor, stop: asyncio.Event) -> None:
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
                metrics_address=f"http://{settings.metrics_host}:{settings.metrics_port}",
            )
            async with await serve_telemetry(settings.metrics_host, settings.metrics_port, runner.readiness):
                # What lives as long as the process is left out of every garbage collection.
                gc.collect()
                gc.freeze()
                gc.set_threshold(_GC_OBJECTS, 20, 50)
                await runner.serve(stop)
    finally:
        await asyncio.to_thread(tracing.shutdown)
