"""A gateway beside the stack's own, in the same IDC: without a guard, or with its etcd in the hand of the test."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.supervisor.probe import read_health
from tests.support.ports import free_ports
from tests.support.stack import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.law_stack import LawStack

START_SECONDS = 60


@dataclass
class ExtraGateway:
    """One gateway process."""

    process: asyncio.subprocess.Process
    name: str
    address: str
    peer_address: str
    metrics: str

    def pause(self) -> None:
        """Stops it in its tracks."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def extra_gateway(
    laws: LawStack, idc: str, *, without: tuple[str, ...] = (), etcd: str = "", **settings: object
) -> AsyncIterator[ExtraGateway]:
    """Runs a gateway for a `with` block.

    Args:
        laws: The stack that it joins.
        idc: Where it stands.
        without: Names of `tests.support.unguarded.GUARDS` that it runs without.
        etcd: Where it finds etcd, when not where the others do.
        settings: More of `GatewaySettings`.
    """
    port, peer_port, metrics_port = free_ports(3)
    name = f"{idc}-extra-{port}"
    log = laws.stack.data_dir / "logs" / f"gateway-{name}.log"
    environment = {
        **os.environ,
        **{
            f"REGIONGATE_{key.upper()}": str(value)
            for key, value in {
                "cluster": laws.stack.file.cluster,
                "idc": idc,
                "gateway": name,
                "etcd_endpoints": etcd or ",".join(laws.stack.etcd_endpoints),
                "database_url": laws.stack.idcs[idc].database,
                "listen": f"127.0.0.1:{port}",
                "peer_listen": f"127.0.0.1:{peer_port}",
                "metrics_port": metrics_port,
                "lease_ttl": 2,
                "trace_sample_ratio": 0,
                **settings,
            }.items()
        },
    }
    command = [sys.executable, "-m", "tests.support.unguarded", ",".join(without) or "nothing", "gateway"]
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    metrics = f"http://127.0.0.1:{metrics_port}"
    gateway = ExtraGateway(process, name, f"127.0.0.1:{port}", f"127.0.0.1:{peer_port}", metrics)
    try:
        async with asyncio.timeout(START_SECONDS):
            while not (await read_health(metrics)).is_ready:
                assert process.returncode is None, f"it has ended:\n{log.read_text(errors='replace')[-3000:]}"
                await asyncio.sleep(0.05)
        yield gateway
    finally:
        if process.returncode is None:
            gateway.wake()
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()
                await process.wait()
