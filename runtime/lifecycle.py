"""How a process lives and ends.

The first SIGTERM or SIGINT sets the stop event: the main function drains and returns. The second one ends the process
at once. A child of the embedded stack also ends when its parent dies, however that happened, so that no server is
left holding a port and a data folder.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog
import uvloop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

log = structlog.get_logger(__name__)

PARENT_VARIABLE = "REGIONGATE_PARENT_PID"
"""Set by a supervisor: the process ends when that parent is gone."""

_PR_SET_PDEATHSIG = 1
_EXIT_SECOND_SIGNAL = 130


def _load_prctl() -> Callable[[int, int], int] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong]
    return prctl


_prctl = _load_prctl()


def follow_parent(death_signal: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """Returns a `preexec_fn`: the child gets `death_signal` when the thread that started it ends.

    The signal comes from the kernel, so it is sent even when the parent is killed. None where there is no such thing
    (not Linux). Start children from the main thread: the kernel watches the thread, not the process.
    """
    if _prctl is None:
        return None
    prctl, parent = _prctl, os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            # The parent died between fork and here: its signal will never come.
            os._exit(1)

    return arm


def _follow_supervisor() -> None:
    """Arms the death signal in this process, when a supervisor has asked for it."""
    parent = os.environ.get(PARENT_VARIABLE, "")
    if not parent.isdigit() or _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(f"the supervisor (process {parent}) is gone")


@contextmanager
def collected_later() -> Generator[None]:
    """For loading many modules: no garbage collection meanwhile, and none of what was loaded ever after.

    Modules live as long as the process. Looking through them takes a tenth of the load time, and later makes every
    full collection, which holds up all calls, several times as long.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run(
    main: Callable[[asyncio.Event], Awaitable[int | None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop,
) -> int:
    """Runs an async main function and returns its exit code (None counts as 0).

    `main` gets the stop event; it should return soon after the event is set. The loop is uvloop's unless another
    factory is given; None stands for asyncio's own.
    """
    _follow_supervisor()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_run(main)) or 0


async def _run(main: Callable[[asyncio.Event], Awaitable[int | None]]) -> int | None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_report_unhandled)
    stop = asyncio.Event()

    def receive(number: signal.Signals) -> None:
        # Act before talking: the log may go to a pipe that nobody reads any more.
        if stop.is_set():
            os._exit(_EXIT_SECOND_SIGNAL)
        stop.set()
        log.info("stopping", signal=number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, receive, number)
    try:
        return await main(stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _report_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs what nobody awaited, without the objects in `context`: their text may hold anything."""
    log.error("unhandled error in the event loop", what=context.get("message", ""), exc_info=context.get("exception"))
