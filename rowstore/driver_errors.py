"""Turns the driver's errors into ours: none of them gets out of this package.

What PostgreSQL says may quote a key or a value, so nothing of its text is passed on (law L1): the SQLSTATE and the
names of the schema tell enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from policy.errors import DatabaseUnavailable, RegiongateError

if TYPE_CHECKING:
    from collections.abc import Mapping

DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What asyncpg raises; a time-out is an `OSError`."""

_SCHEMA_CHANGED: Final = "a prepared statement is out of date"
"""Instead of its SQLSTATE, which it shares with unsupported features."""

_WAITING_HELPS: Final[Mapping[str, str]] = {
    _SCHEMA_CHANGED: "the schema of the database has changed",
    "25006": "the database takes no writes now: it is a standby",
    "40001": "the database could not order the statement",
    "40P01": "the database broke a deadlock",
    "42703": "a column of the policy is not in the database yet",
    "42P01": "a table of the policy is not in the database yet",
    "55P03": "the database could not get a lock in time",
    "57014": "the database took too long",
    "57P01": "the database is shutting down",
    "57P02": "the database is restarting",
    "57P03": "the database is starting",
}
_SERVER_ENDS: Final = ("57P01", "57P02", "57P03")

_CLASSES_WHERE_WAITING_HELPS: Final[Mapping[str, str]] = {
    "08": "the connection to the database was lost",
    "28": "the database does not accept the gateway's identity",
    "53": "the database is short of resources",
    "58": "the database's machine has a fault",
}


def translate(error: BaseException) -> RegiongateError:
    """What a driver's error means to a caller. Raise it outside the `except` block, or it drags the other along."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(getattr(error, "sqlstate", None) or "?????")
        if isinstance(error, asyncpg.InvalidCachedStatementError):
            state = _SCHEMA_CHANGED
        why = _WAITING_HELPS.get(state) or _CLASSES_WHERE_WAITING_HELPS.get(state[:2])
        if why:
            return DatabaseUnavailable(why)
        return RegiongateError(f"the database refused a statement (SQLSTATE {state})")
    if isinstance(error, TimeoutError):
        return DatabaseUnavailable("the database did not answer in time")
    if isinstance(error, ValueError):
        return RegiongateError("the database URL is not valid")
    if isinstance(error, OSError):
        return DatabaseUnavailable("the database cannot be reached")
    return DatabaseUnavailable("the connection to the database was lost")


def is_connection_loss(error: BaseException) -> bool:
    """Whether the connection is gone, though the driver may not have noticed yet."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(getattr(error, "sqlstate", None) or "")
        return state.startswith("08") or state in _SERVER_ENDS
    return isinstance(error, OSError) and not isinstance(error, TimeoutError)
