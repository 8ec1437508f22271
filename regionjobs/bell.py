"""Hears when something for jobs has changed in the IDC's database: new rows, orders, firings.

The bell only wakes; whoever is woken looks for itself, and looks now and then without it. While no connection listens,
every wait is simply as long as its poll.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import asyncpg
import structlog

from rowstore.driver_errors import DRIVER_ERRORS
from rowstore.jobs.registry import DOORBELL, ORDER
from runtime.tasks import first_of

log = structlog.get_logger("regionjobs")

_CONNECT_SECONDS: Final = 5
"""For the connection, and for each statement on it."""
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_LOOK_SECONDS: Final = 10.0
"""Between two signs of life from a connection that hears nothing."""


class Bell:
    """One connection that listens."""

    def __init__(self, url: str, application_name: str) -> None:
        self._url = url
        self._settings = {"application_name": application_name}
        self.rung = asyncio.Event()
        """Set at the next ring, and replaced by a new one: take it, look, then wait for it."""
        self.ordered = asyncio.Event()
        """The same, but only for what concerns jobs themselves: orders and firings, not new rows."""

    async def run(self) -> None:
        """Listens for ever."""
        pause = _FIRST_PAUSE
        while True:
            with contextlib.suppress(*DRIVER_ERRORS):
                await self._listen()
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _listen(self) -> None:
        """Listens until the connection is lost."""
        connection = await asyncpg.connect(
            self._url, timeout=_CONNECT_SECONDS, command_timeout=_CONNECT_SECONDS, server_settings=self._settings
        )
        lost = asyncio.Event()

        def note_loss(_: object) -> None:
            lost.set()

        connection.add_termination_listener(note_loss)
        try:
            await connection.add_listener(DOORBELL, self._hear)
            # What came before we listened.
            self.ring()
            while not lost.is_set():
                await first_of(lost, timeout=_LOOK_SECONDS)
                await connection.fetchval("SELECT 1")
        finally:
            connection.terminate()

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self.ring(is_order=payload == ORDER)

    def ring(self, *, is_order: bool = True) -> None:
        """Wakes whoever waits in this process."""
        rung, self.rung = self.rung, asyncio.Event()
        rung.set()
        if is_order:
            ordered, self.ordered = self.ordered, asyncio.Event()
            ordered.set()
