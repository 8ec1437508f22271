"""A stack for all attacks on the laws, and one for all attacks on moves: each test leaves its stack as it found it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.job_attacks import Fleet, fleet_over
from tests.support.law_stack import LawStack, running_law_stack
from tests.support.move_stack import MoveStack, running_move_stack

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


@pytest.fixture(scope="package")
def shared_moves() -> Iterator[MoveStack]:
    """The stack itself; no controller runs but those of the tests."""
    with running_move_stack() as moves:
        yield moves


@pytest.fixture
async def moves(shared_moves: MoveStack) -> AsyncIterator[MoveStack]:
    """The stack: whole, at rest, all shards of DE in one IDC; at the end all is where it may be."""
    await shared_moves.heal()
    if not await shared_moves.is_in_one_place():
        await shared_moves.gather()
    yield shared_moves
    await shared_moves.heal()
    await shared_moves.check_rest()


@pytest.fixture(scope="module")
def shared_fleet(shared_moves: MoveStack) -> Iterator[Fleet]:
    """Job runners over that stack, for one module of tests."""
    with fleet_over(shared_moves) as fleet:
        yield fleet


@pytest.fixture
async def fleet(moves: MoveStack, shared_fleet: Fleet) -> Fleet:
    """The runners, all awake and ready, on a stack at rest."""
    await shared_fleet.muster()
    return shared_fleet
