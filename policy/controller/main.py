"""The controller's process: settings in, telemetry up, then the loop until SIGTERM."""

from __future__ import annotations

import asyncio
import secrets
import time

from policy.controller.drive import DriveSettings
from policy.controller.loop import Controller
from policy.controller.moves import Limits
from policy.controller.peers import PeerCalls, credentials_of
from policy.controller.settings import ControllerSettings
from policy.follower import Follower
from policy.metrics import POLICY_AGE
from policy.records import Keys
from runtime import lifecycle
from runtime.etcd import EtcdClient
from runtime.telemetry.http import Readiness, serve_telemetry
from runtime.telemetry.logs import setup_logging
from runtime.telemetry.tracing import Tracing

__all__ = ["ControllerSettings", "run"]

SILENCE_SECONDS = 15.0
"""Without a word from the policy store for so long, the controller is not ready."""


def run(settings: ControllerSettings) -> int:
    """Runs one controller until it is told to stop; returns the process's exit code."""
    setup_logging("controller", log_format=settings.log_format, level=settings.log_level)
    return lifecycle.run(lambda stop: _main(settings, stop))


async def _main(settings: ControllerSettings, stop: asyncio.Event) -> None:
    keys = Keys(settings.cluster)
    name = settings.controller or f"controller-{secrets.token_hex(4)}"
    async with EtcdClient(settings.etcd_settings()) as client:
        follower = Follower(client, keys)
        peers = PeerCalls(credentials_of(settings), settings.open_timeout.total_seconds())
        tracing = Tracing("controller", "", 0.0, settings.trace_directory, name)
        controller = Controller(
            client,
            keys,
            follower,
            peers,
            name,
            tracing,
            settings.lease_ttl,
            Limits(settings.moves_per_pair, settings.moves_per_idc),
            DriveSettings(stall_limit=settings.stall_limit, step_timeout=settings.open_timeout),
        )
        POLICY_AGE.set_function(lambda: time.monotonic() - follower.last_event)
        async with await serve_telemetry(
            settings.metrics_host, settings.metrics_port, lambda: _readiness(controller, follower)
        ):
            await follower.start()
            try:
                await controller.run(stop)
            finally:
                await follower.stop()
                await peers.close()
                await asyncio.to_thread(tracing.shutdown)


def _readiness(controller: Controller, follower: Follower) -> Readiness:
    is_heard = follower.is_loaded and time.monotonic() - follower.last_event < SILENCE_SECONDS
    checks = {
        "policy store": "ok" if is_heard else "not heard of",
        "policy": follower.problem or "ok",
        "role": "leading" if controller.is_leader else "standing by",
        "last decision": controller.sentence,
    }
    return Readiness(is_heard and not follower.problem, checks)
