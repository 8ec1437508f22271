"""What an error says of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError

from policy.errors import ClaimLost, DatabaseUnavailable, DeadlineExceeded, LimitReached, Unavailable
from regionjobs.failing import Outcome
from rowstore.driver_errors import DRIVER_ERRORS, translate

__all__ = ["Outcome", "ShardsChanged", "Try", "judge"]


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
        original: object = getattr(error, "orig", None)
        cause = original.__cause__ if isinstance(original, BaseException) else None
        known = translate(cause) if isinstance(cause, DRIVER_ERRORS) else None
        return (
            Outcome.PASSING
            if isinstance(known, DatabaseUnavailable) or error.connection_invalidated
            else Outcome.FAILED
        )
    if isinstance(error, Unavailable | LimitReached | DeadlineExceeded | ConnectionError):
        return Outcome.PASSING
    return Outcome.FAILED
