"""Keeps the members of a stack running: a member that ends by itself is reported and started again with back-off.

Members are stopped in the reverse of the order in which they were added, stage by stage: what depends on another goes
first.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.embedded import EmbeddedServerError
from runtime.supervisor.errors import StackError
from runtime.supervisor.process import describe_exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.supervisor.process import Server

_BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STABLE_SECONDS = 30.0
"""A member that has run for so long starts again with the first back-off."""


@dataclass(slots=True)
class Member:
    """One server of the stack."""

    name: str
    role: str
    idc: str
    server: Server
    stage: int
    """Higher stages depend on lower ones, and stop before them."""
    metrics: str = ""
    endings: list[str] = field(default_factory=list[str])
    """How it ended by itself, so far."""
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Keeper:
    """Starts, watches, restarts and stops the members."""

    def __init__(self, tell: Callable[[str], None], changed: Callable[[], None], *, can_restart: bool) -> None:
        """Prepares an empty stack.

        Args:
            tell: Gets one sentence for each event that a person should know.
            changed: Called when a member runs under a new process id.
            can_restart: Whether members that end by themselves are started again.
        """
        self._tell = tell
        self._changed = changed
        self._can_restart = can_restart
        self._is_established = False
        self._stopping = asyncio.Event()
        self._has_ended = asyncio.Event()
        self.members: list[Member] = []

    async def add(self, member: Member) -> None:
        """Starts a member and watches it from now on."""
        await member.server.start()
        self.members.append(member)
        member.task = asyncio.create_task(self._watch(member), name=f"watch-{member.name}")

    async def wait_ended(self) -> Member:
        """Waits until a member has ended by itself; returns the first one that has."""
        await self._has_ended.wait()
        return next(member for member in self.members if member.endings)

    def establish(self) -> None:
        """From now on, a member that ends is reported and started again; before, the start has failed."""
        self._is_established = True

    async def stop(self) -> None:
        """Stops all members, the highest stage first, each stage at once."""
        self._stopping.set()
        for stage in sorted({member.stage for member in self.members}, reverse=True):
            group = [member for member in self.members if member.stage == stage]
            await asyncio.gather(*(self._stop(member) for member in group))

    async def _stop(self, member: Member) -> None:
        await member.server.stop()
        if member.task:
            await asyncio.gather(member.task, return_exceptions=True)
            # It may have been starting the server again while that was being stopped.
            await member.server.stop()

    async def _watch(self, member: Member) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            code = await member.server.wait()
            if self._stopping.is_set():
                return
            member.endings.append(describe_exit(code))
            self._has_ended.set()
            if not self._is_established:
                return
            if not self._can_restart:
                self._tell(f"{member.name} {describe_exit(code)}; it stays down, as asked")
                return
            failures = 0 if time.monotonic() - started > _STABLE_SECONDS else failures
            failures = await self._restart(member, describe_exit(code), failures)
            if self._stopping.is_set():
                return

    async def _restart(self, member: Member, ending: str, failures: int) -> int:
        """Starts the member again; tries until that works or the stack stops. Returns the failures so far."""
        while not self._stopping.is_set():
            pause = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]
            self._tell(f"{member.name} {ending}; starting it again in {pause:g} s")
            failures += 1
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pass
            if self._stopping.is_set():
                break
            try:
                await member.server.start()
            except (StackError, EmbeddedServerError, OSError) as error:
                ending = f"does not start ({error})"
                continue
            self._changed()
            break
        return failures
