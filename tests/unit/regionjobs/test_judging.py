"""What an error says of a batch."""

from __future__ import annotations

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from policy.errors import (
    AccessDenied,
    ClaimLost,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidJob,
    LimitReached,
    PeerUnreachable,
    RegiongateError,
    ShardUnavailable,
    VersionConflict,
)
from regionjobs.judging import MAX_TEXT, Outcome, ShardsChanged, judge, text_of


def wrapped(cause: BaseException, *, is_lost: bool = False) -> DBAPIError:
    """As SQLAlchemy wraps an error of the driver's."""
    original = Exception()
    original.__cause__ = cause
    return DBAPIError("SELECT", None, original, connection_invalidated=is_lost)


@pytest.mark.parametrize("error", [ClaimLost(""), ShardsChanged()])
def test_whoever_has_lost_the_shard_has_lost_the_batch(error):
    assert judge(error) is Outcome.LOST


@pytest.mark.parametrize(
    "error",
    [
        DatabaseUnavailable(""),
        PeerUnreachable(""),
        ShardUnavailable(""),
        LimitReached(""),
        DeadlineExceeded(""),
        ConnectionResetError(),
        BrokenPipeError(),
        wrapped(asyncpg.AdminShutdownError("")),
        wrapped(asyncpg.DeadlockDetectedError("")),
        wrapped(asyncpg.SerializationError("")),
        wrapped(asyncpg.DiskFullError("")),
        wrapped(asyncpg.ReadOnlySQLTransactionError("")),
        wrapped(ConnectionResetError()),
        wrapped(asyncpg.InterfaceError("connection is closed"), is_lost=True),
    ],
)
def test_waiting_helps_against_a_database_or_gateway_that_is_not_there(error):
    assert judge(error) is Outcome.PASSING


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        AssertionError(),
        TimeoutError(),
        SystemExit(1),
        KeyboardInterrupt(),
        RecursionError(),
        MemoryError(),
        AccessDenied(""),
        VersionConflict(""),
        InvalidJob(""),
        RegiongateError(""),
        InvalidRequestError(""),
        wrapped(asyncpg.UniqueViolationError("")),
        wrapped(asyncpg.DivisionByZeroError("")),
        wrapped(asyncpg.InFailedSQLTransactionError("")),
        wrapped(asyncpg.InsufficientPrivilegeError("")),
        wrapped(asyncpg.InterfaceError("another operation is in progress")),
        wrapped(ValueError()),
        asyncpg.UniqueViolationError(""),
    ],
)
def test_anything_else_is_the_handlers(error):
    assert judge(error) is Outcome.FAILED


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("Köln"), "Köln"),
        (ValueError("a\x00b"), "a\ufffdb"),
        (ValueError("a\udc80b"), "a?b"),
        (Mute(), ""),
        (ValueError("x" * 10 * MAX_TEXT), "x" * MAX_TEXT),
    ],
)
def test_what_an_error_says_is_kept_as_far_as_postgresql_can_hold_it(error, text):
    assert text_of(error) == text
