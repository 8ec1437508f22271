"""A controller as a child of the test, told where to stop; see `tests.support.move_controller`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.lifecycle import PARENT_VARIABLE
from tests.support.ports import free_port
from tests.support.stack import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from tests.support.law_stack import LawStack

LEASE_SECONDS = 2
HELD_SECONDS = 40


@dataclass
class SteeredController:
    """One controller process."""

    process: asyncio.subprocess.Process
    points: list[str]
    _seen: set[str] = field(default_factory=set[str])
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def held(self, *points: str, seconds: float = HELD_SECONDS) -> None:
        """Waits until it stands at each of these points; at all that it was started with when none is named."""
        wanted = {f"held {point}" for point in points or self.points}
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: wanted <= self._seen or self.process.returncode is not None)
        except TimeoutError:
            raise AssertionError(f"it does not come to {sorted(wanted - self._seen)}") from None
        assert wanted <= self._seen, f"it has ended with {self.process.returncode}"

    @property
    def passed(self) -> set[str]:
        """The points that it has gone on from."""
        return {line.removeprefix("passed ") for line in self._seen if line.startswith("passed ")}

    def hold(self, point: str) -> None:
        """Stop there, too."""
        self.points.append(point)
        self._order(f"hold {point}")

    def go(self, *points: str) -> None:
        """Go on from these points; from all when none is named. One that it has not come to does not stop it."""
        for point in points or self.points:
            self._order(f"go {point}")

    def _order(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(f"{line}\n".encode())

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if it runs."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """Ends it at once."""
        self.send(signal.SIGKILL)
        await self.process.wait()

    async def listen(self) -> None:
        """Takes in what it says until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._changed:
                self._seen.add(line.decode().strip())
                self._changed.notify_all()
        await self.process.wait()
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def steered(
    laws: LawStack, points: Sequence[str], without: Sequence[str], settings: Mapping[str, object]
) -> AsyncIterator[SteeredController]:
    """Runs a controller for a `with` block."""
    options = {
        "cluster": laws.stack.file.cluster,
        "etcd_endpoints": ",".join(laws.stack.etcd_endpoints),
        "metrics_port": free_port(),
        "lease_ttl": LEASE_SECONDS,
        "moves_per_pair": 64,
        "moves_per_idc": 256,
        **settings,
    }
    environment = {f"REGIONGATE_{name.upper()}": str(value) for name, value in options.items()}
    command = [sys.executable, "-m", "tests.support.move_controller", ",".join(without) or "nothing", *points]
    with (laws.stack.data_dir / "logs" / "controller-steered.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={**os.environ, **environment, PARENT_VARIABLE: str(os.getpid())},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    controller = SteeredController(process, list(points))
    listening = asyncio.create_task(controller.listen())
    try:
        yield controller
    finally:
        await _end(controller)
        await listening


async def _end(controller: SteeredController) -> None:
    controller.send(signal.SIGCONT)
    controller.go()
    controller.send(signal.SIGTERM)
    try:
        await asyncio.wait_for(controller.process.wait(), 15)
    except TimeoutError:
        await controller.kill()
