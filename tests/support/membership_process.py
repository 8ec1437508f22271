"""A runner's membership in a process of its own, which says over and over what it holds.

Each line of output is `<monotonic time> <1 if alive> <id of the session, or ->`; the time is taken before the look.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta

from policy.records import Keys
from regionjobs.membership import Membership
from runtime.etcd import EtcdClient
from runtime.telemetry.logs import setup_logging
from tests.support.cluster import settings


async def main(endpoint: str, cluster: str, name: str) -> None:
    """Runs until it is killed."""
    async with EtcdClient(settings(endpoint)) as client:
        membership = Membership(client, Keys(cluster), idc="fra", name=name, jobs=["settle"], ttl=timedelta(seconds=2))
        await membership.start()
        while True:
            before = time.monotonic()
            print(f"{before} {int(membership.is_alive)} {membership.runner or '-'}", flush=True)
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    setup_logging("membership", level="error")  # to stderr: stdout is for the lines
    asyncio.run(main(*sys.argv[1:]))
