"""Connections for the effects of batches: SQLAlchemy's, on asyncpg, each batch with a connection object of its own.

The offset is moved by the driver's connection underneath, inside SQLAlchemy's transaction if the handler has begun one.
A batch that has begun none costs one statement, which commits by itself. A connection that was cut short, or whose
batch failed, is ended: whatever a handler has left on it ends with it.

A handler's effects and the offset are one transaction (law L5), so it is not the handler's to end: what would end it is
refused before it happens, and a batch that has tried to is not committed, though the handler hides it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from policy.errors import DatabaseUnavailable, InvalidJob
from rowstore.driver_errors import DRIVER_ERRORS, translate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from datetime import timedelta

    from sqlalchemy import Connection as SyncConnection
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.pool import ConnectionPoolEntry

_MAY_COMMIT: Final = "regiongate_may_commit"
_WAS_ENDED: Final = "regiongate_was_ended"
_IS_OUT: Final = "regiongate_is_out"
"""What a connection is told of the batch at hand."""
_ENDS_TRANSACTION: Final = re.compile(
    r"\s*(commit|end|abort|rollback(?!\s+(work\s+|transaction\s+)?to\b)|prepare\s+transaction)\b", re.IGNORECASE
)
_CONNECT_SECONDS: Final = 5
_END_SECONDS: Final = 2.0


class Effects:
    """A connection for one batch."""

    __slots__ = ("connection", "driver", "was_used")

    def __init__(self, connection: AsyncConnection, driver: asyncpg.Connection) -> None:
        self.connection = connection
        """What the handler gets."""
        self.driver = driver
        self.was_used = False
        """Whether a transaction of the handler's was committed."""

    @property
    def is_used(self) -> bool:
        """Whether the handler has begun a transaction."""
        return self.connection.in_transaction()

    async def check(self) -> None:
        """Raises `InvalidJob` when the transaction is not what the handler was given, or may still be worked on."""
        if self.connection.invalidated or self.driver.is_closed():
            raise DatabaseUnavailable("the connection to the database was lost")
        if self.connection.closed:
            raise InvalidJob("the handler has closed the batch's connection", field_name="handler")
        if (await self.connection.get_raw_connection()).info.get(_WAS_ENDED):
            raise _not_the_handlers()
        if self.is_used and not self.driver.is_in_transaction():
            # Begun, perhaps, and nothing said to the server yet.
            await self.connection.exec_driver_sql("SELECT 1")
        if self.is_used != self.driver.is_in_transaction():
            raise InvalidJob("the handler has begun or ended the batch's transaction itself", field_name="handler")

    async def begin(self) -> None:
        """Begins the transaction, where the handler has not."""
        if not self.is_used:
            await self.connection.begin()
            # SQLAlchemy tells the server with the first statement; ours go by the driver.
            await self.connection.exec_driver_sql("SELECT 1")

    async def commit(self) -> None:
        """Commits. After an error nobody knows whether it did."""
        self.was_used = True
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
        except asyncpg.InterfaceError as error:
            failure = translate(error)
            if not self.driver.is_closed():
                failure = InvalidJob("the handler has left something at work on the connection", field_name="handler")
        except asyncpg.UndefinedTableError:
            # Our tables are there: the shard was claimed in them.
            failure = InvalidJob("the handler has set another search_path", field_name="handler")
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
        listened = self._engine.sync_engine
        event.listen(listened, "checkout", _refuse_strange)
        event.listen(listened, "commit", _refuse_commit)
        event.listen(listened, "rollback", _note_rollback)
        event.listen(listened, "before_cursor_execute", _refuse_statement)
        event.listen(listened, "set_connection_execution_options", _refuse_isolation)

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncGenerator[Effects]:
        """A connection for one batch; rolled back, unless it was committed.

        Raises `DatabaseUnavailable` when there is none to be had.
        """
        connection = await self._connect()
        driver: Any = None
        try:
            raw = await connection.get_raw_connection()
            raw.info.pop(_WAS_ENDED, None)
            driver = raw.driver_connection
            effects = Effects(connection, driver)
            yield effects
        except BaseException:
            await _end(connection, driver)
            raise
        # The batch is committed: from here on nothing may look like a failure of it.
        try:
            if effects.was_used:
                # Settings, locks and cursors that the handler has left behind are not for the next batch.
                await effects.driver.reset(timeout=_END_SECONDS)
            raw.info.pop(_IS_OUT, None)
            # Back into the pool.
            await connection.close()
        except (*DRIVER_ERRORS, SQLAlchemyError):
            await _end(connection, driver)

    async def _connect(self) -> AsyncConnection:
        try:
            return await self._engine.connect()
        except (*DRIVER_ERRORS, SQLAlchemyError) as error:
            failure = DatabaseUnavailable(f"no connection for a batch ({type(error).__name__})")
        raise failure

    async def close(self) -> None:
        """Ends all connections."""
        await self._engine.dispose()


def _refuse_strange(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """A connection that a handler has closed lies in the pool with all that was left on it; the pool makes another."""
    driver: Any = connection.driver_connection
    if record.info.get(_IS_OUT) or driver.is_closed():
        raise DisconnectionError
    record.info[_IS_OUT] = True


def _not_the_handlers() -> InvalidJob:
    return InvalidJob("the batch's transaction is not the handler's to commit or roll back", field_name="handler")


def _refuse_commit(connection: SyncConnection) -> None:
    """A handler that commits would tear its effects from the offset (law L5)."""
    if not connection.info.get(_MAY_COMMIT):
        connection.info[_WAS_ENDED] = True
        raise _not_the_handlers()


def _note_rollback(connection: SyncConnection) -> None:
    """Without its effects, a batch is not done."""
    connection.info[_WAS_ENDED] = True


def _refuse_statement(connection: SyncConnection, _cursor: object, statement: str, *_: object) -> None:
    """What SQLAlchemy does not see as a commit is one all the same."""
    if _ENDS_TRANSACTION.match(statement):
        connection.info[_WAS_ENDED] = True
        raise _not_the_handlers()


def _refuse_isolation(_connection: SyncConnection, options: dict[str, Any]) -> None:
    """Each statement would commit by itself, or a commit would not see the newest token."""
    if "isolation_level" in options:
        raise InvalidJob("the isolation of a batch's transaction is not the handler's to choose", field_name="handler")


async def _end(connection: AsyncConnection, driver: asyncpg.Connection | None) -> None:
    """Ends a connection whose batch did not go well, soon and without a word to a server that may be frozen.

    The driver's first: what a handler has left at work on it would hold up the rest, and its place in the pool.
    """
    if driver is not None and not connection.closed:
        driver.terminate()
    for step in (connection.invalidate, connection.close):
        with contextlib.suppress(SQLAlchemyError, *DRIVER_ERRORS):
            async with asyncio.timeout(_END_SECONDS):
                await step()
