"""The stack under measurement: `regiongate up` with the demo's policy, and gateways beside it with other settings."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio

import regiongate
from bench.rows import DATASET, FOREIGN_REGION, IDC, KEYS, REGION, key, values
from regiongate.demo.stack import running_stack
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from runtime.stack_file import StackFile

BATCH = 500
GATEWAY_SECONDS = 30.0


@asynccontextmanager
async def measured_stack() -> AsyncGenerator[StackFile]:
    """Starts the stack in a temporary folder and fills in the rows that the figures read."""
    with tempfile.TemporaryDirectory(prefix="regiongate-bench-", ignore_cleanup_errors=True) as folder:
        async with running_stack(Path(folder)) as stack:
            await _fill(stack, REGION)
            await _fill(stack, FOREIGN_REGION)
            yield stack


async def _fill(stack: StackFile, region_code: str) -> None:
    home = "fra" if region_code == FOREIGN_REGION else IDC
    async with regiongate.connect(stack.idcs[home].gateway) as client:
        for start in range(0, KEYS, BATCH):
            writes = [regiongate.Put(region_code, key(n), values(n)) for n in range(start, start + BATCH)]
            for result in await client.batch_write(DATASET, writes, timeout=60):
                if isinstance(result, Exception):
                    raise result


@asynccontextmanager
async def extra_gateway(stack: StackFile, name: str, **settings: str) -> AsyncGenerator[str]:
    """One more gateway of the measured IDC; gives its address."""
    address = f"127.0.0.1:{free_port()}"
    own = {
        "idc": IDC,
        "gateway": name,
        "etcd_endpoints": ",".join(stack.etcd_endpoints),
        "database_url": stack.idcs[IDC].database,
        "listen": address,
        "peer_listen": "127.0.0.1:0",
        "metrics_port": "0",
        "log_level": "error",
        **settings,
    }
    environment = os.environ | {f"REGIONGATE_{name.upper()}": value for name, value in own.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "regiongate.cli.main", "gateway", env=environment
    )
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(channel.channel_ready(), GATEWAY_SECONDS)
        yield address
    finally:
        process.terminate()
        await process.wait()


def gateway_pid(stack: StackFile, idc: str) -> int:
    """Process id of an IDC's gateway."""
    return stack.process(f"gateway-{idc}").pid
