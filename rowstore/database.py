"""Connections to one IDC's database: a bounded free list over asyncpg, which costs half of a pool.

Connections are opened when they are first needed, so a gateway starts while its database is down. Every wait has a
deadline: for a connection, for the server (statement and lock time-outs) and for the wire (a client time-out, should
the server be frozen). A connection whose statement was cut short is never used again. Each statement commits by itself:
no paused process holds a lock (law L2). The settings below are part of the laws: `rowstore.write_statements` is right
at READ COMMITTED only, and acknowledged means durable (law L3).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self

import asyncpg

from policy.errors import DatabaseUnavailable, LimitReached
from rowstore.driver_errors import DRIVER_ERRORS, is_connection_loss, translate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from asyncpg.prepared_stmt import PreparedStatement

    Connection = asyncpg.Connection

MAX_WAITING: Final = 10_000
"""Statements that may wait for a connection."""

MAX_PREPARED: Final = 400
"""Statements that are kept prepared on a connection."""

_CUT_SHORT_TIMEOUT: Final = 2.0
"""Seconds for ending a connection whose statement was cut short."""

_SWEEP_INTERVAL: Final = 0.5
"""Seconds between two looks at statements that take too long."""

_CLIENT_GRACE: Final = 1.0
"""Seconds that the server's time-out has before the client's."""


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """How to reach a database."""

    url: str
    size: int
    application_name: str
    statement_timeout: timedelta
    connect_timeout: timedelta

    def server_settings(self) -> dict[str, str]:
        """Settings of each session."""
        milliseconds = str(int(self.statement_timeout.total_seconds() * 1000))
        return {
            "application_name": self.application_name,
            # A writer that waited for a fence must judge it as it is now, not as it was (law L2).
            "default_transaction_isolation": "read committed",
            # An acknowledged write survives the server (law L3).
            "synchronous_commit": "on",
            "statement_timeout": milliseconds,
            "lock_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
            # A statement of a client that is gone must not go on holding a fence.
            "client_connection_check_interval": "2s",
            # Plans are made once, perhaps on empty tables, and serve any number of rows: only lookups by index and in
            # hash tables, whatever the statistics say. A nested loop remains where nothing else can be (LATERAL).
            "plan_cache_mode": "force_generic_plan",
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "enable_sort": "off",
            "enable_nestloop": "off",
            "enable_mergejoin": "off",
            "jit": "off",
            "timezone": "UTC",
        }


class Session:
    """A connection and the statements that are prepared on it: found without asyncpg's own search for them."""

    __slots__ = ("_count", "connection", "prepared", "was_frozen")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.prepared: dict[str, PreparedStatement] = {}
        self.was_frozen = False
        """Whether it was cut off because the server did not answer."""
        self._count = 0

    async def prepare(self, statement: str) -> PreparedStatement:
        """Prepares a statement that is not prepared yet."""
        if len(self.prepared) >= MAX_PREPARED:
            self.prepared.clear()
        self._count += 1
        # With a name, or asyncpg would send the statement anew each time.
        prepared = await self.connection.prepare(statement, name=f"rowstore_{self._count}")
        self.prepared[statement] = prepared
        return prepared


class Database:
    """One IDC's database; `async with Database.open(url)`."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._timeout = settings.statement_timeout.total_seconds() + _CLIENT_GRACE
        self._server_settings = settings.server_settings()
        self._free: list[Session] = []
        self._unopened = settings.size
        self._waiting: deque[asyncio.Future[Session | None]] = deque()
        self._retiring: set[asyncio.Task[None]] = set()
        self._busy: dict[Session, float] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_connected = False

    @classmethod
    def open(
        cls,
        url: str,
        *,
        size: int = 8,
        application_name: str = "regiongate",
        statement_timeout: timedelta = timedelta(seconds=5),
        connect_timeout: timedelta = timedelta(seconds=3),
    ) -> Self:
        """Describes a database without reaching for it yet.

        Args:
            url: `postgresql://user:password@host:port/name`, with `sslmode` and the like as libpq takes them.
            size: Most connections at once.
            application_name: What the server shows for them.
            statement_timeout: How long a statement may take, a wait for a fence included.
            connect_timeout: How long opening a connection, or waiting for a free one, may take.
        """
        return cls(DatabaseSettings(url, size, application_name, statement_timeout, connect_timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def settings(self) -> DatabaseSettings:
        """How it is reached."""
        return self._settings

    @property
    def is_connected(self) -> bool:
        """Whether the database was reached when it was last tried."""
        return self._is_connected and not self._is_closed

    async def check(self) -> None:
        """Asks the database for a sign of life; raises `DatabaseUnavailable`."""
        await self.fetch("SELECT 1")

    async def fetch(self, statement: str, *arguments: object, is_repeatable: bool = False) -> list[asyncpg.Record]:
        """Runs one statement in a transaction of its own.

        Args:
            statement: SQL with `$1` and so on.
            arguments: Their values.
            is_repeatable: Whether it may be run again when the connection is lost, as a read may. Without it, an error
                may leave open whether the statement has happened.

        Raises:
            DatabaseUnavailable: the database cannot be reached, is too slow, or has no such table yet.
            asyncpg.UniqueViolationError: an index said no; the callers of this package make sense of it.
        """
        session = self._free.pop() if self._free else await self._acquire()
        connection = session.connection
        if connection.is_closed():
            session = await self._replace()
            connection = session.connection
        self._begin(session)
        try:
            prepared = session.prepared.get(statement) or await session.prepare(statement)
            records = await prepared.fetch(*arguments)
        except asyncpg.UniqueViolationError:
            self._release(session)
            raise
        except DRIVER_ERRORS as error:
            failure = translate(error)
            is_lost = connection.is_closed() or is_connection_loss(error)
            if is_lost:
                # What has ended this connection has most likely ended the idle ones, too.
                self._drop_free()
            self._give_back(session, error)
        except BaseException:
            # Cancelled while the statement runs: asyncpg tells the server; nobody knows whether it still commits.
            self._retire(session)
            raise
        else:
            self._release(session)
            return records
        if is_repeatable and is_lost and not session.was_frozen:
            return await self.fetch(statement, *arguments)
        raise failure

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection to oneself, for several statements; the driver's errors are translated, too.

        No fence may be held over it: a paused process would hold it as long.
        """
        session = await self._acquire()
        try:
            yield session.connection
        except DRIVER_ERRORS as error:
            failure = translate(error)
            self._give_back(session, error)
        except BaseException:
            self._retire(session)
            raise
        else:
            self._release(session)
            return
        raise failure

    async def close(self) -> None:
        """Closes every connection; whoever waits for one is refused."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(DatabaseUnavailable("the gateway is stopping"))
        self._waiting.clear()
        self._drop_free()
        while self._retiring:
            await asyncio.wait(self._retiring)

    # ---- the free list ----------------------------------------------------------------------------------------------

    async def _acquire(self) -> Session:
        if self._is_closed:
            raise DatabaseUnavailable("the gateway is stopping")
        while self._free:
            session = self._free.pop()
            if not session.connection.is_closed():
                return session
            self._unopened += 1
        if self._unopened:
            self._unopened -= 1
            return await self._connect()
        return await self._wait_for_one()

    async def _replace(self) -> Session:
        """Instead of a connection that the server has closed, as a restart does with all of them."""
        self._unopened += 1
        return await self._acquire()

    async def _wait_for_one(self) -> Session:
        if len(self._waiting) >= MAX_WAITING:
            raise LimitReached("too many statements wait for the database", limit=str(MAX_WAITING))
        waiter: asyncio.Future[Session | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        session: Session | None = None
        try:
            async with asyncio.timeout(self._settings.connect_timeout.total_seconds() + self._timeout):
                session = await waiter
        except BaseException as error:
            self._withdraw(waiter)
            if isinstance(error, TimeoutError):
                raise DatabaseUnavailable("no connection to the database was free in time") from None
            raise
        # None: no connection, but the right to open one.
        return session if session is not None else await self._connect()

    def _withdraw(self, waiter: asyncio.Future[Session | None]) -> None:
        """Somebody stops waiting; what was handed over in the same moment goes to the next."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            session = waiter.result()
            if session is None:
                self._free_slot()
            else:
                self._release(session)

    async def _connect(self) -> Session:
        """Opens a connection in a slot that is ours; gives the slot back when it fails."""
        timeout = self._settings.connect_timeout.total_seconds()
        try:
            async with asyncio.timeout(timeout):
                connection = await asyncpg.connect(
                    self._settings.url,
                    server_settings=self._server_settings,
                    statement_cache_size=0,
                )
        except (*DRIVER_ERRORS, ValueError) as error:
            self._is_connected = False
            failure = translate(error)
            self._free_slot()
        except BaseException:
            self._free_slot()
            raise
        else:
            self._is_connected = True
            return Session(connection)
        raise failure

    def _begin(self, session: Session) -> None:
        """A statement begins: the next sweeps look at it, which costs less than a timer for each."""
        loop = asyncio.get_running_loop()
        self._busy[session] = loop.time()
        if self._sweep is None:
            self._sweep = loop.call_later(_SWEEP_INTERVAL, self._cut_off_frozen)

    def _cut_off_frozen(self) -> None:
        """Ends connections whose server is silent though its own time-out has passed: it is frozen, or cut off."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._timeout
        for session, start in list(self._busy.items()):
            if start < oldest:
                session.was_frozen = True
                session.connection.terminate()
        self._sweep = loop.call_later(_SWEEP_INTERVAL, self._cut_off_frozen) if self._busy else None

    def _release(self, session: Session) -> None:
        self._busy.pop(session, None)
        if session.connection.is_closed():
            self._free_slot()
        elif self._is_closed:
            self._retire(session)
        else:
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(session)
                    return
            self._free.append(session)

    def _free_slot(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._unopened += 1

    def _give_back(self, session: Session, error: BaseException) -> None:
        """After an error: a statement that the server refused leaves the connection whole, anything else does not."""
        is_refusal = isinstance(error, asyncpg.PostgresError)
        # A statement prepared for a table that has changed since goes with its connection.
        is_stale = isinstance(error, asyncpg.InvalidCachedStatementError)
        connection = session.connection
        if is_refusal and not is_stale and not connection.is_closed() and not connection.is_in_transaction():
            self._release(session)
            return
        if not is_refusal:
            self._is_connected = False
        self._retire(session)

    def _drop_free(self) -> None:
        free, self._free = self._free, []
        for session in free:
            self._retire(session)

    def _retire(self, session: Session) -> None:
        self._busy.pop(session, None)
        task = asyncio.get_running_loop().create_task(self._end(session.connection))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end(self, connection: Connection) -> None:
        """Ends a connection and gives its slot back; only then may another one be opened."""
        try:
            async with asyncio.timeout(_CUT_SHORT_TIMEOUT):
                await connection.close()
        except (*DRIVER_ERRORS, asyncio.CancelledError):
            connection.terminate()
        finally:
            self._free_slot()
