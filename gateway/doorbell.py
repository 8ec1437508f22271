"""Tells the job runners of this IDC that rows have changed, so that they need not wait for their next look.

A ring is a courtesy: runners look by themselves, too. So it must cost the writes nothing. It leaves after a write has
committed, over a connection of its own, and nobody waits for it; one that fails is left out.

Invariants:
- After the last write there is a ring that began after it, as long as the database answers.
- At most one ring in `PAUSE`, the first at once; none while no runner is connected.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Final

from gateway.metrics import DOORBELL_FAILURES, DOORBELL_RINGS
from policy.errors import RegiongateError
from rowstore.database import Database
from rowstore.jobs.listening import is_anybody_there
from rowstore.jobs.registry import ring_for_rows

PAUSE: Final = 0.01
"""Seconds between two rings."""

_TIMEOUT: Final = timedelta(seconds=1)


class Doorbell:
    """Rings for the writes of one gateway."""

    def __init__(self, database: Database) -> None:
        """Connects to nothing before the first ring."""
        self._database = database
        settings = database.settings
        name = f"{settings.application_name}-doorbell"
        # What the database cannot answer must not take a connection away from calls.
        self._line = Database(
            replace(settings, size=1, application_name=name, statement_timeout=_TIMEOUT, connect_timeout=_TIMEOUT)
        )
        self._is_wanted = False
        self._is_due = False
        self._task: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Finds out whether there is anybody to ring for; raises `DatabaseUnavailable`."""
        was_wanted, self._is_wanted = self._is_wanted, await is_anybody_there(self._database.fetch)
        if self._is_wanted and not was_wanted:
            self.ring()  # for the writes since it came

    def ring(self) -> None:
        """Something has been committed: rings soon, if there is anybody to ring for; never fails, never waits."""
        if not self._is_wanted:
            return
        self._is_due = True
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="doorbell")

    async def close(self) -> None:
        """Rings for what is left, and hangs up."""
        self._is_wanted = False
        if self._task is not None:
            await asyncio.wait({self._task})
        await self._line.close()

    async def _run(self) -> None:
        try:
            while self._is_due:
                self._is_due = False
                try:
                    await ring_for_rows(self._line.fetch)
                    DOORBELL_RINGS.inc()
                except RegiongateError:
                    DOORBELL_FAILURES.inc()
                await asyncio.sleep(PAUSE)
        finally:
            self._task = None
