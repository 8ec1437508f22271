"""The demo's stack: `regiongate up` as a child, on a folder of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from regiongate.cli.failures import CommandFailed
from runtime.stack_file import NAME, StackFile

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

START_SECONDS = 90.0
STOP_SECONDS = 30.0


def policy_file(name: str = "policy.yaml") -> Path:
    """The demo's policy: beside this module in an installed package, in `deploy/demo` in a checkout."""
    installed = Path(__file__).with_name(name)
    return installed if installed.exists() else Path(__file__).resolve().parents[2] / "deploy" / "demo" / name


def new_policy_file() -> Path:
    """What it becomes when the law changes."""
    return policy_file("policy-uk.yaml")


def shown(path: Path) -> str:
    """The path as a person in the current folder would write it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def make_folder(data_dir: Path | None) -> Path:
    """The folder to use: a new one below the system's temporary folder when none is given."""
    if data_dir is None:
        return Path(tempfile.mkdtemp(prefix="regiongate-demo-"))
    if data_dir.exists() and any(data_dir.iterdir()):
        raise CommandFailed("FOLDER_NOT_EMPTY", f"{data_dir} is not empty", "the demo wants a folder of its own")
    return data_dir


@asynccontextmanager
async def running_stack(
    data_dir: Path, policy: Path | None = None, idcs: Sequence[str] = (), jobs: Sequence[str] = ()
) -> AsyncGenerator[StackFile]:
    """Starts the stack and stops it in the end; its progress lines go to stderr.

    Args:
        data_dir: Where it keeps its data.
        policy: What it begins with; the demo's when not given.
        idcs: Those to run; the policy's when not given.
        jobs: Modules whose jobs run in each.

    Raises:
        CommandFailed: The stack did not come up; what it said is on stderr already.
    """
    command = [sys.executable, "-m", "regiongate.cli.main", "up", "--data-dir", str(data_dir)]
    command += ["--policy", str(policy or policy_file()), "--idcs", ",".join(idcs)]
    command += [word for module in jobs for word in ("--jobs", module)]
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
    try:
        await _wait_ready(process, data_dir / NAME)
        yield StackFile.load(data_dir)
    finally:
        await stop(process)


async def _wait_ready(process: asyncio.subprocess.Process, stack_file: Path) -> None:
    """Waits until the stack has written its file, or has ended without."""
    ended = asyncio.create_task(process.wait())
    try:
        async with asyncio.timeout(START_SECONDS):
            while not stack_file.exists():  # noqa: ASYNC240 (one stat, twenty times a second)
                await asyncio.wait({ended}, timeout=0.05)
                if ended.done():
                    raise CommandFailed("STACK_FAILED", "the stack did not come up", "its own words are above")
    except TimeoutError:
        raise CommandFailed("STACK_FAILED", f"the stack was not ready after {START_SECONDS:.0f} s") from None
    finally:
        ended.cancel()


async def stop(process: asyncio.subprocess.Process) -> None:
    """Ends the stack as Ctrl-C would, and by force when that takes too long."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
