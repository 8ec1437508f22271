"""Connections for moving shards, beside those of the requests: other plans, more patience, and a number of their own.

A frozen server is noticed all the same: each statement has a deadline here, and a COPY, which may take as long as it
moves, has one for each piece (`Watch`). The last rounds, which writers wait for, have connections to themselves: no
bulk copy makes them wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self

from rowstore.database import Database, DatabaseSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from rowstore.database import Connection

MAX_BULK: Final = 4
"""Connections for bulk copies, digests and deletions, in each process."""
MAX_URGENT: Final = 4
"""Connections for the last rounds."""

STATEMENT_SECONDS: Final = 30.0
"""How long a statement that moves no bytes to us may take; all of them work on a bounded number of rows."""
PIECE_SECONDS: Final = 15.0
"""How long the server may take for one piece of a COPY."""


@dataclass(frozen=True, slots=True)
class MoveSettings(DatabaseSettings):
    """How to reach the database for moving shards."""

    def server_settings(self) -> dict[str, str]:
        """Settings of each session."""
        return {
            "application_name": self.application_name,
            "default_transaction_isolation": "read committed",
            # What is told of as copied survives the server (law L3).
            "synchronous_commit": "on",
            # Should we be paused in the middle of a slice, another attempt must not wait for it for long.
            "statement_timeout": "90s",
            "lock_timeout": "5s",
            "idle_in_transaction_session_timeout": "15s",
            "client_connection_check_interval": "2s",
            # A shard is a part of its tables, always found by an index; tables just filled have no statistics yet.
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "enable_sort": "off",
            "max_parallel_workers_per_gather": "0",
            "jit": "off",
            # What a digest hashes is text, and these shape it.
            "timezone": "UTC",
            "datestyle": "ISO, MDY",
            "extra_float_digits": "1",
            "bytea_output": "hex",
            "standard_conforming_strings": "on",
        }


class MoveConnections:
    """Connections to the database that `database` is connected to."""

    def __init__(self, database: Database) -> None:
        self._bulk = _open_beside(database, MAX_BULK, "bulk")
        self._urgent = _open_beside(database, MAX_URGENT, "urgent")

    def take(self, *, is_urgent: bool) -> AbstractAsyncContextManager[Connection]:
        """A connection to oneself; the driver's errors are translated. It is not used again after any error."""
        return (self._urgent if is_urgent else self._bulk).connection()

    async def close(self) -> None:
        """Closes them."""
        await self._bulk.close()
        await self._urgent.close()


def _open_beside(database: Database, size: int, purpose: str) -> Database:
    settings = database.settings
    return Database(
        MoveSettings(
            url=settings.url,
            size=size,
            application_name=f"{settings.application_name}-move-{purpose}",
            # Also how long a copy waits for another one's slice to end.
            statement_timeout=timedelta(seconds=STATEMENT_SECONDS),
            connect_timeout=settings.connect_timeout,
        )
    )


async def run(connection: Connection, statement: str, *arguments: object) -> str:
    """Runs a statement; returns its status."""
    return await connection.execute(statement, *arguments, timeout=STATEMENT_SECONDS)


async def fetch_all(connection: Connection, statement: str, *arguments: object) -> list[asyncpg.Record]:
    """The records of a statement."""
    return await connection.fetch(statement, *arguments, timeout=STATEMENT_SECONDS)


async def fetch_any(connection: Connection, statement: str, *arguments: object) -> asyncpg.Record | None:
    """The first record of a statement, or None."""
    return await connection.fetchrow(statement, *arguments, timeout=STATEMENT_SECONDS)


async def fetch_one(connection: Connection, statement: str, *arguments: object) -> asyncpg.Record:
    """The record of a statement that gives exactly one."""
    (record,) = await connection.fetch(statement, *arguments, timeout=STATEMENT_SECONDS)
    return record


@contextlib.asynccontextmanager
async def transaction(connection: Connection, how: str = "READ WRITE") -> AsyncGenerator[None]:
    """A transaction that commits at the end.

    After an error nothing is said to the server, which may be frozen: the connection ends, and the transaction with it.
    """
    await run(connection, f"BEGIN {how}")
    yield
    await run(connection, "COMMIT")


SNAPSHOT: Final = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
"""All statements of the transaction see the same."""


class Watch:
    """Ends a connection whose server keeps a COPY waiting for too long; the COPY then fails with a lost connection."""

    def __init__(self, connection: Connection, seconds: float | None = None) -> None:
        self._connection = connection
        self._seconds = PIECE_SECONDS if seconds is None else seconds
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def resume(self) -> None:
        """It is the server's turn."""
        self.pause()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._connection.terminate)

    def pause(self) -> None:
        """It is the other side's turn."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
