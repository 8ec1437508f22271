"""What asyncio and grpc.aio leave open: who was cancelled, and which of several events comes first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


async def first_of(*events: asyncio.Event, timeout: float | None = None) -> bool:
    """Waits until one of the events is set; False when `timeout` seconds have passed first."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return bool(done)


def is_cancelled() -> bool:
    """Whether somebody has cancelled the current task.

    Asked when a gRPC call has raised `CancelledError`: a channel that is closed under a call does the same, though
    nobody wants the task to end.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Begun:
    """Work that is brought to its end, though whoever has asked for it gives up."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Waits for the work; when the waiting is cancelled, the work goes on."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen here, since the caller may have gone
