"""What an error says of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import asyncpg
from sqlalchemy.exc import DBAPIError

from policy.errors import ClaimLost, DatabaseUnavailable, DeadlineExceeded, LimitReached, Unavailable
from regionjobs.failing import Outcome
from rowstore.driver_errors import DRIVER_ERRORS, translate

__all__ = ["Outcome", "ShardsChanged", "Try", "judge", "text_of", "told"]

MAX_TEXT: Final = 10_000
"""Characters that are kept of what an error says."""


class ShardsChanged(Exception):
    """The shards that a batch was read for are not what they were: it is not saved (requirement U9)."""


@dataclass(frozen=True, slots=True)
class Try:
    """How a try ended."""

    outcome: Outcome
    error: BaseException | None = None


def judge(error: BaseException) -> Outcome:
    """What an error says of the batch: lost, something that waiting helps against, or a failure of the handler."""
    if isinstance(error, ClaimLost | ShardsChanged):
        return Outcome.LOST
    if isinstance(error, DBAPIError):
        return Outcome.PASSING if _is_databases_fault(error) else Outcome.FAILED
    if isinstance(error, Unavailable | LimitReached | DeadlineExceeded | ConnectionError):
        return Outcome.PASSING
    return Outcome.FAILED


def _is_databases_fault(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    original: object = getattr(error, "orig", None)
    cause = original.__cause__ if isinstance(original, BaseException) else None
    if isinstance(cause, asyncpg.InterfaceError):
        # On a connection that is whole, it is the driver that refuses what it was asked.
        return False
    return isinstance(cause, DRIVER_ERRORS) and isinstance(translate(cause), DatabaseUnavailable)


def text_of(error: BaseException) -> str:
    """What an error says, as PostgreSQL can hold it: it is the handler's, and may be anything."""
    try:
        return told(str(error))
    except Exception:  # noqa: BLE001 (its own method may fail)
        return ""


def told(text: str) -> str:
    """A text without what PostgreSQL cannot hold, and not longer than anybody would read."""
    return text[:MAX_TEXT].replace("\x00", "\ufffd").encode(errors="replace").decode()
