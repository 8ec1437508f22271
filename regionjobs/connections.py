"""Connections for the effects of batches: SQLAlchemy's, on asyncpg, each batch with a connection object of its own.

The offset is moved by the driver's connection underneath, inside SQLAlchemy's transaction if the handler has begun one.
A batch that has begun none costs one statement, which commits by itself. A connection that was cut short, or whose
batch failed, is ended: whatever a handler has left on it ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from policy.errors import DatabaseUnavailable, InvalidJob
from rowstore.driver_errors import DRIVER_ERRORS, translate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

    from sqlalchemy import Connection as SyncConnection
    from sqlalchemy.ext.asyncio import AsyncConnection

_MAY_COMMIT: Final = "regiongate_may_commit"
_CONNECT_SECONDS: Final = 5
_END_SECONDS: Final = 2.0


class Effects:
    """A connection for one batch."""

    __slots__ = ("connection", "driver")

    def __init__(self, connection: AsyncConnection, driver: asyncpg.Connection) -> None:
        self.connection = connection
        """What the handler gets."""
        self.driver = driver

    @property
    def is_used(self) -> bool:
        """Whether the handler has begun a transaction."""
        return self.connection.in_transaction()

    def check(self) -> None:
        """Raises `InvalidJob` when the handler has ended the transaction behind SQLAlchemy's back."""
        if self.is_used and not self.driver.is_in_transaction():
            raise InvalidJob("the handler has ended the batch's transaction itself", field_name="handler")

    async def begin(self) -> None:
        """Begins the transaction, where the handler has not."""
        if not self.is_used:
            await self.connection.begin()
            # SQLAlchemy tells the server with the first statement; ours go by the driver.
            await self.connection.exec_driver_sql("SELECT 1")

    async def commit(self) -> None:
        """Commits. After an error nobody knows whether it did."""
        info = (await self.connection.get_raw_connection()).info
        info[_MAY_COMMIT] = True
        try:
            await self.connection.commit()
        finally:
            info[_MAY_COMMIT] = False

    async def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:  # noqa: ANN401 (SQL values)
        """Runs a statement of ours on the driver; its errors are translated."""
        try:
            return await self.driver.fetch(statement, *arguments)
        except DRIVER_ERRORS as error:
            failure = translate(error)
        raise failure


class EffectConnections:
    """At most `size` connections to the IDC's database for batches."""

    def __init__(self, url: str, *, size: int, application_name: str, statement_timeout: timedelta) -> None:
        milliseconds = str(int(statement_timeout.total_seconds() * 1000))
        settings = {
            "application_name": application_name,
            # A commit must judge the fence and the token as they are now (law L5).
            "default_transaction_isolation": "read committed",
            "synchronous_commit": "on",
            "statement_timeout": milliseconds,
            # A paused runner must not keep others waiting for the rows that it has touched.
            "idle_in_transaction_session_timeout": milliseconds,
            "client_connection_check_interval": "2s",
            "timezone": "UTC",
        }
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=partial(asyncpg.connect, url, timeout=_CONNECT_SECONDS, server_settings=settings),
            pool_size=size,
            max_overflow=0,
            # Slots are given out before connections are asked for; who waits longer waits for a bug.
            pool_timeout=_CONNECT_SECONDS,
            hide_parameters=True,
        )
        event.listen(self._engine.sync_engine, "commit", _refuse_commit)

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncGenerator[Effects]:
        """A connection for one batch; rolled back, unless it was committed.

        Raises `DatabaseUnavailable` when there is none to be had.
        """
        connection = await self._connect()
        try:
            raw = await connection.get_raw_connection()
            yield Effects(connection, raw.driver_connection)  # pyright: ignore[reportArgumentType]: asyncpg's
        except BaseException:
            await _end(connection)
            raise
        # Back into the pool, rolled back if need be.
        await connection.close()

    async def _connect(self) -> AsyncConnection:
        try:
            return await self._engine.connect()
        except (*DRIVER_ERRORS, SQLAlchemyError) as error:
            failure = DatabaseUnavailable(f"no connection for a batch ({type(error).__name__})")
        raise failure

    async def close(self) -> None:
        """Ends all connections."""
        await self._engine.dispose()


def _refuse_commit(connection: SyncConnection) -> None:
    """A handler that commits would tear its effects from the offset (law L5)."""
    if not connection.info.get(_MAY_COMMIT):
        raise InvalidJob("the batch commits, not the handler", field_name="handler")


async def _end(connection: AsyncConnection) -> None:
    """Ends a connection whose batch did not go well, soon and without a word to a server that may be frozen."""
    with contextlib.suppress(SQLAlchemyError, *DRIVER_ERRORS):
        async with asyncio.timeout(_END_SECONDS):
            await connection.invalidate()
            await connection.close()
