"""Fixtures that every part shares."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.support.stack import RunningStack, running_stack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A developer's own settings and collectors must not leak into tests or the processes that they start.
for _name in [name for name in os.environ if name.startswith(("REGIONGATE_", "OTEL_"))]:
    del os.environ[_name]
os.environ["GRPC_VERBOSITY"] = "ERROR"

# How long one example takes says more of the machine's other work than of ours; pytest's own timeout bounds the whole.
hypothesis.settings.register_profile("regiongate", deadline=None)
hypothesis.settings.load_profile("regiongate")
# grpc's fork handlers abort a child that is forked while a channel is open.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


@pytest.fixture(scope="session")
def stack() -> Iterator[RunningStack]:
    """One stack of four IDCs with the demo's policy for the whole session: write only under keys of your own, change
    no policy, and kill nothing."""
    with running_stack(trace_sample_ratio=1.0) as running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets `make test` run attacks and jobs beside everything else: most of each is waiting for other processes."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group_of(item.nodeid, getattr(item, "fixturenames", ()))))


def _group_of(nodeid: str, fixtures: Sequence[str]) -> str:
    path, _, _ = nodeid.partition("::")
    if "stack" in fixtures:
        # One stack for the session, not one for each worker.
        return "others"
    is_job = "job" in path and not path.startswith("tests/unit/")
    return "attacks and jobs" if is_job or path.startswith("tests/fault/") else "others"
