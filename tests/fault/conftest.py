"""One stack for all attacks on the laws: each test leaves it alive, and under the policy that it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.law_stack import LawStack, running_law_stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="package")
def shared_laws() -> Iterator[LawStack]:
    """The stack itself."""
    with running_law_stack() as laws:
        yield laws


@pytest.fixture
async def laws(shared_laws: LawStack) -> AsyncIterator[LawStack]:
    """The stack, whole before the test; at the end all rows and fences of all databases are where they may be."""
    await shared_laws.heal()
    yield shared_laws
    await shared_laws.heal()
    await shared_laws.check_places()
    await shared_laws.check_fences()
