"""Which ports a stack listens on.

A folder keeps its ports from one start to the next where they are still free, so that what clients wrote down stays
true. New ones are taken below the range that the kernel hands out for outgoing connections: a port from there could be
gone again while its server is being restarted.
"""

from __future__ import annotations

import errno
import os
import socket
from random import Random
from typing import TYPE_CHECKING

from runtime.supervisor.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HOST = "127.0.0.1"
_LOWEST, _HIGHEST = 12_000, 31_000


def is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def choose_ports(uses: Iterable[str], known: Mapping[str, int], base_port: int = 0) -> dict[str, int]:
    """Chooses a port for each use.

    With a `base_port`, they are the ports from there on in the order of the uses, and all must be free. Without, a
    known port is kept when it is free.

    Raises:
        StackError: A demanded port is taken, or none is free.
    """
    uses = tuple(uses)
    if base_port:
        return {use: _demand(port, use) for port, use in enumerate(uses, start=base_port)}
    chosen = {use: known[use] for use in uses if use in known and is_free(known[use])}
    random = Random(os.urandom(8))  # noqa: S311 (spreads the stacks of one machine, keeps no secret)
    candidates = iter(random.sample(range(_LOWEST, _HIGHEST), 2_000))
    for use in uses:
        if use not in chosen:
            chosen[use] = _take(candidates, set(chosen.values()) | set(known.values()))
    return chosen


def _take(candidates: Iterable[int], taken: set[int]) -> int:
    for port in candidates:
        if port not in taken and is_free(port):
            return port
    raise StackError("NO_FREE_PORT", f"no free port between {_LOWEST} and {_HIGHEST}")


def _demand(port: int, use: str) -> int:
    if not 0 < port < 65536:
        raise StackError("PORT_INVALID", f"port {port} for {use} does not exist", "choose a lower --base-port")
    if not is_free(port):
        holder = _find_holder(port)
        raise StackError(
            "PORT_TAKEN",
            f"port {port}, wanted for {use}, is taken{f' by {holder}' if holder else ''}",
            "stop that process, or choose another --base-port",
        )
    return port


def _find_holder(port: int) -> str:
    """Names the process that listens on the port, where the system lets us see it."""
    import psutil  # noqa: PLC0415 (only needed to say why we fail)

    try:
        for connection in psutil.net_connections(kind="tcp"):
            is_holder = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if is_holder and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""
