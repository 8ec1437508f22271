"""Brings this IDC's tables up to the followed policy, and says which revision they have reached.

Level-triggered: each turn looks at the newest table, makes what is missing (additive, idempotent, under the database's
own lock, so any number of gateways may do it at once) and reports the revision. A database that is down delays only its
own IDC's new columns, never a law: access rules hold from the moment that the table has them.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from gateway.call_metrics import SCHEMA_FAILURES, SCHEMA_REVISION
from policy.errors import RegiongateError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from policy.model import Dataset
    from policy.table import RoutingTable

log = structlog.get_logger("gateway.schema_keeper")

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
FORGET_EVERY: Final = timedelta(minutes=1)
REMEMBER_FOR: Final = timedelta(minutes=30)
"""Twice what the interface promises for a request_id."""


class Follows(Protocol):
    """Where tables come from."""

    @property
    def table(self) -> RoutingTable | None:
        """The newest."""
        ...

    def subscribe(self) -> AsyncIterator[RoutingTable | None]:
        """The table now, and after each change."""
        ...


class SchemaKeeper:
    """Reconciles one database's schema with the policy."""

    def __init__(
        self,
        view: Follows,
        *,
        migrate: Callable[[], Awaitable[None]],
        ensure: Callable[[Iterable[Dataset]], Awaitable[None]],
        report: Callable[[int], None],
    ) -> None:
        """Starts nothing.

        Args:
            view: Where tables come from.
            migrate: Brings the system tables up to date.
            ensure: Makes the tables and columns of datasets that are missing.
            report: Told the policy revision that the schema has reached.
        """
        self._view = view
        self._migrate = migrate
        self._ensure = ensure
        self._report = report
        self.is_migrated = False
        """Whether the system tables are there."""
        self.revision = 0
        """Newest policy revision whose datasets the database has."""
        self.problem = "the schema has not been looked at yet"
        """Why it is behind; empty when it is not."""

    async def run(self) -> None:
        """Keeps the schema until cancelled."""
        await self._until_done(self._migrate_once)
        async for table in self._view.subscribe():
            if table is not None and table.policy.revision > self.revision:
                await self._until_done(self._ensure_newest)

    async def _migrate_once(self) -> None:
        await self._migrate()
        self.is_migrated = True

    async def _ensure_newest(self) -> None:
        """By the newest table, also when a turn before has failed by an older one."""
        table = self._view.table
        if table is None:
            return
        await self._ensure(table.policy.datasets.values())
        self.revision = table.policy.revision
        SCHEMA_REVISION.set(self.revision)
        self._report(self.revision)
        log.info("the schema is up to date", policy_revision=self.revision)

    async def _until_done(self, turn: Callable[[], Awaitable[None]]) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await turn()
            except RegiongateError as error:
                SCHEMA_FAILURES.inc()
                if self.problem != error.reason:
                    log.warning("the schema cannot be brought up to date yet", reason=error.reason, why=error.message)
                self.problem = error.reason
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                self.problem = ""
                return


async def forget_requests(forget: Callable[[timedelta], Awaitable[int]]) -> None:
    """Lets go of remembered requests that are older than any retry, until cancelled."""
    while True:
        await asyncio.sleep(FORGET_EVERY.total_seconds())
        try:
            number = await forget(REMEMBER_FOR)
        except RegiongateError as error:
            log.warning("old requests are kept for now", reason=error.reason)
        else:
            log.debug("old requests forgotten", requests=number)
