"""A long-running job that tells by datagrams what it sees, as a module of jobs that a runner loads."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

import regiongate
from bench.job_handlers import DATASET

if TYPE_CHECKING:
    from regionjobs.batch import Batch

FEW: Final = "NL"
"""RegionCode of few rows."""
PORT: Final = "REGIONGATE_BENCH_PORT"
"""Variable with the UDP port of whoever wants to know."""

_line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


@regiongate.job(dataset=DATASET, regions=[FEW], kind="long-running")
async def bench_follow(batch: Batch) -> None:
    """Says which process has seen which rows."""
    for row in batch.rows:
        told = f"{os.getpid()} {batch.shard} {row.key}"
        _line.sendto(told.encode(), ("127.0.0.1", int(os.environ[PORT])))
