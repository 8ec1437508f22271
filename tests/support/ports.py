"""Free TCP ports on loopback that no other test process will be handed.

A port is claimed by a locked file for as long as this process lives, and lies below the range from which the system
takes ports for outgoing connections: between the claim and the server's start nobody else gets it.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

_FIRST, _LAST = 12_000, 32_000
_claims: dict[int, IO[str]] = {}


def free_port() -> int:
    """A port that is free now, and ours from now on."""
    folder = Path(tempfile.gettempdir()) / f"regiongate-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for _ in range(1000):
        port = random.randint(_FIRST, _LAST)
        if port in _claims or not _is_free(port):
            continue
        claim = (folder / str(port)).open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            continue
        _claims[port] = claim
        return port
    raise RuntimeError("no free port")


def free_ports(count: int) -> tuple[int, ...]:
    """Several different free ports."""
    return tuple(free_port() for _ in range(count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
