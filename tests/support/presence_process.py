"""A gateway's follower and presence in a process of their own, which says over and over what they hold.

Each line of output is `<monotonic time> <1 if fresh> <policy revision>`; the time is taken before the look.
"""

from __future__ import annotations

import asyncio
import sys
import time

from policy.records import Keys
from runtime.telemetry.logs import setup_logging
from tests.support.cluster import member


async def main(endpoint: str, cluster: str) -> None:
    """Runs until it is killed."""
    async with member(endpoint, Keys(cluster)) as it:
        while True:
            before = time.monotonic()
            print(f"{before} {int(it.presence.is_fresh)} {it.revision}", flush=True)
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    setup_logging("presence", level="error")  # to stderr: stdout is for the lines
    asyncio.run(main(*sys.argv[1:]))
