"""One child process: started with a log file, watched, and ended in order.

A child is in a session of its own, so that Ctrl-C in the terminal reaches the supervisor alone, which stops the
children in the right order. The kernel ends it when the supervisor is killed (runtime.lifecycle).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Protocol

from runtime.lifecycle import PARENT_VARIABLE
from runtime.supervisor.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_TAIL_BYTES = 4096


class Server(Protocol):
    """A server that the stack runs: our own processes, etcd and PostgreSQL alike."""

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        ...

    async def start(self) -> None:
        """Starts it; returns when the process runs (a database: when it answers)."""
        ...

    async def wait(self) -> int:
        """Waits until it has ended, for whatever reason; returns its exit code, negative for a signal."""
        ...

    async def stop(self) -> None:
        """Ends it in order, by force when it takes too long."""
        ...


class Child:
    """A process of our own."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log_path: Path, grace_seconds: float = 12
    ) -> None:
        self._command = tuple(command)
        self._environment = {**os.environ, **environment, PARENT_VARIABLE: str(os.getpid())}
        self._log_path = log_path
        self._grace_seconds = grace_seconds
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self._log_path

    async def start(self) -> None:
        """Starts the process, its output appended to the log file."""
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as output:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise StackError("BINARY_NOT_RUNNABLE", f"cannot run {self._command[0]}: {error.strerror}") from error

    async def wait(self) -> int:
        """Waits for its end."""
        assert self._process, "not started"  # noqa: S101 (a broken promise of the caller)
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL when it has not drained in time."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(self._grace_seconds):
                await process.wait()
        except TimeoutError:
            _signal(process, signal.SIGKILL)
            await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def read_tail(path: Path, lines: int = 5) -> str:
    """The last lines of a log file, for a message about why its process ended."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with exit code {code}"
