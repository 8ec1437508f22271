"""Shards move while clients read and write and something is killed: laws L1 to L4 and L6 in every phase of a move.

Each test sends all shards of DE to the other IDC at once, and holds one of them at each point of the way. So one death
meets moves in all phases; a failure names the shard, and with it the phase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.move_points import all_held, points

if TYPE_CHECKING:
    from tests.support.move_stack import MoveStack

VICTIMS = ("controller", "source gateway", "target gateway", "source database", "target database", "etcd")


@pytest.mark.parametrize("victim", VICTIMS)
async def test_laws_l1_to_l4_survive_a_death_in_every_phase_of_a_move(moves: MoveStack, victim: str) -> None:
    source, target = await moves.ends()
    epochs = {shard: record.epoch for shard, record in (await moves.shard_records()).items()}
    async with moves.load(f"killed-{victim}") as workload, moves.controller(*points()) as controller:
        await moves.order(target)
        await all_held(moves, controller)
        await moves.strike(victim, controller, source, target)
        await workload.progress(100)
    assert await moves.home() == target
    for shard, record in (await moves.shard_records()).items():
        assert record.epoch == epochs[shard] + (shard[0] == "DE"), "an owner was switched more than once"
