"""Longer hunts for a change that a job handles twice, or never, or somewhere else."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.support.job_attacks import fed, struck

if TYPE_CHECKING:
    from tests.support.job_attacks import Fleet

MOVES = 104
AT_ONCE = 8


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("with_trouble", [False, True], ids=["runners", "everything"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_laws_l1_and_l5_hold_through_100_moves_while_things_break(
    fleet: Fleet, seed: int, with_trouble: bool
) -> None:
    """Runners die and sleep at random; with `everything` so do gateways and databases, and etcd sleeps."""
    fleet.dice = random.Random(seed)
    name = f"hunt-{seed}-{'everything' if with_trouble else 'runners'}"
    async with fed(fleet, name) as feed, struck(fleet) as strikes, fleet.moves.controller():
        for _ in range(MOVES // AT_ONCE):
            await fleet.shuffle(AT_ONCE, with_trouble=with_trouble)
        await feed.progress(100)
    print(f"{len(strikes)} runners struck, {feed.writes} writes, errors of clients: {dict(feed.errors)}")
