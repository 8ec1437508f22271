"""Whether anybody hears the doorbell: runners say by their sessions' name that they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rowstore.jobs.offsets import Fetch

RUNNER_APPLICATION: Final = "regiongate-runner"
"""Where the `application_name` of each runner's sessions begins."""

# A session of another role hides its name from whoever may not see statistics: nobody rings then, and runners poll.
_IS_ANYBODY_THERE: Final = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, $1)
)
"""


async def is_anybody_there(fetch: Fetch) -> bool:
    """Whether a runner is connected to this database."""
    return (await fetch(_IS_ANYBODY_THERE, RUNNER_APPLICATION))[0][0]
