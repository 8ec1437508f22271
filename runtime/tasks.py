"""What asyncio and grpc.aio leave open about cancellation."""

from __future__ import annotations

import asyncio


def is_cancelled() -> bool:
    """Whether somebody has cancelled the current task.

    Asked when a gRPC call has raised `CancelledError`: a channel that is closed under a call does the same, though
    nobody wants the task to end.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
