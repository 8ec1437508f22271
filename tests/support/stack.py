"""A real stack for tests: `regiongate up` as a child process, found through its `stack.json`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGINT, Signals
from typing import TYPE_CHECKING

from runtime.stack_file import NAME, IdcEntry, StackFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
DEMO_POLICY = ROOT / "deploy" / "demo" / "policy.yaml"
START_SECONDS = 90.0
STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02


class StackFailed(AssertionError):
    """The stack did not do what it should; carries what it said."""


@dataclass
class RunningStack:
    """A stack that is up."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    said_file: Path

    @property
    def file(self) -> StackFile:
        """`stack.json` as it is now: a process that was started again has a new id there."""
        return StackFile.load(self.data_dir)

    @property
    def idcs(self) -> dict[str, IdcEntry]:
        """The addresses of each IDC."""
        return dict(self.file.idcs)

    @property
    def etcd_endpoints(self) -> tuple[str, ...]:
        """Where etcd answers."""
        return self.file.etcd_endpoints

    def gateway(self, idc: str) -> str:
        """Client address of an IDC's gateway."""
        return self.file.idcs[idc].gateway

    def pid(self, name: str) -> int:
        """Process id of `etcd`, `postgres-<idc>`, `gateway-<idc>` or `controller`."""
        return self.file.process(name).pid

    def signal(self, name: str, number: Signals) -> int:
        """Sends a signal to a process of the stack and returns its process id."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def wait_restarted(self, name: str, old_pid: int, seconds: float = 20.0) -> int:
        """Waits until the supervisor has started a process anew and returns the new process id."""
        wait_until(lambda: self.pid(name) != old_pid, seconds, f"{name} did not come back")
        return self.pid(name)

    def said(self) -> str:
        """What the supervisor has said so far."""
        return self.said_file.read_text(errors="replace")

    def log(self, name: str) -> str:
        """The log of one of our own processes."""
        return (self.data_dir / "logs" / f"{name}.log").read_text(errors="replace")

    def stop(self, number: Signals = SIGINT) -> int:
        """Stops the stack and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise StackFailed(f"the stack did not stop in {STOP_SECONDS:g} s:\n{self.said()}") from None
        return self.process.returncode


def wait_until(condition: Callable[[], object], seconds: float, complaint: str) -> None:
    """Waits for what happens in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StackFailed(complaint)
        time.sleep(_POLL_SECONDS)


def make_folder() -> Path:
    """A folder that every user can reach: as root, PostgreSQL runs as nobody (pytest's own are private)."""
    folder = Path(tempfile.mkdtemp(prefix="regiongate-test-"))
    folder.chmod(0o755)
    return folder


def spawn_up(data_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> RunningStack:
    """Starts `regiongate up` without waiting for anything."""
    command = [sys.executable, "-m", "regiongate.cli.main", "up", "--data-dir", str(data_dir), *arguments]
    said_file = data_dir.with_name(f"{data_dir.name}.said")
    with said_file.open("ab") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    return RunningStack(process, data_dir, said_file)


def start_stack(data_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> RunningStack:
    """Starts `regiongate up` and waits until it is ready; raises `StackFailed` with what it said."""
    # One that a killed stack has left would be taken for the new one's.
    StackFile.remove(data_dir)
    stack = spawn_up(data_dir, *arguments, environment=environment)
    deadline = time.monotonic() + START_SECONDS
    while not (data_dir / NAME).exists():
        if stack.process.poll() is not None:
            raise StackFailed(f"the stack ended with code {stack.process.returncode}:\n{stack.said()}")
        if time.monotonic() > deadline:
            stack.process.kill()
            stack.process.wait()
            raise StackFailed(f"the stack was not ready in {START_SECONDS:g} s:\n{stack.said()}")
        time.sleep(_POLL_SECONDS)
    return stack


@contextmanager
def running_stack(
    policy: Path | None = DEMO_POLICY,
    *,
    data_dir: Path | None = None,
    restart: bool = True,
    trace_sample_ratio: float = 0.0,
    arguments: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[RunningStack]:
    """A stack for a `with` block, on a folder of its own that is removed afterwards unless one is given.

    Args:
        policy: Applied at the start; None for none (then name the IDCs in `arguments`).
        data_dir: An own folder, which stays.
        restart: Whether a killed process comes back.
        trace_sample_ratio: Share of the calls without a trace that are traced.
        arguments: More of `regiongate up`.
        environment: More variables.
    """
    folder = data_dir or make_folder() / "data"
    options = [f"--trace-sample-ratio={trace_sample_ratio}", "--restart" if restart else "--no-restart", *arguments]
    options += ["--policy", str(policy)] if policy else []
    stack = None
    try:
        stack = start_stack(folder, *options, environment=environment)
        yield stack
    finally:
        if stack is not None:
            _resume(stack)
            stack.stop()
        if data_dir is None:
            shutil.rmtree(folder.parent, ignore_errors=True)


def _resume(stack: RunningStack) -> None:
    """Wakes whatever a test has paused, so that it can be stopped."""
    if (stack.data_dir / NAME).exists():
        for process in stack.file.processes:
            try:
                os.kill(process.pid, SIGCONT)
            except (ProcessLookupError, PermissionError):
                continue
