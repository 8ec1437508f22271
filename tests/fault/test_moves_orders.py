"""Orders in the middle of moves, in every phase: cancelled, planned anew, forbidden by a new law (L1 to L4, L6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.move_points import AFTER_SWITCH, BEFORE_SWITCH, EVERYWHERE, all_held, points
from tests.support.move_stack import IDCS

if TYPE_CHECKING:
    from tests.support.move_stack import MoveStack


async def test_a_cancelled_move_goes_back_before_its_switch_and_on_after_it(moves: MoveStack) -> None:
    source, target = await moves.ends()
    before = await moves.shard_records()
    async with moves.load("cancelled") as workload, moves.controller(*points()) as controller:
        rollout = await moves.order(target)
        await all_held(moves, controller)
        answer = await moves.cancel(rollout)
        assert set(AFTER_SWITCH) <= {move.shard for move in answer.going_on}
        assert not set(BEFORE_SWITCH) & {move.shard for move in answer.going_on}
        controller.go()
        await moves.rest()
        await workload.progress(100)
        assert (await moves.rollouts())[rollout].state == "cancelled"
    after = await moves.shard_records()
    for shard in BEFORE_SWITCH:
        old, new = before["DE", shard], after["DE", shard]
        assert (new.owner, new.epoch, new.attempt) == (source, old.epoch, old.attempt + 2), shard
    for shard in AFTER_SWITCH:
        assert (after["DE", shard].owner, after["DE", shard].epoch) == (target, before["DE", shard].epoch + 1), shard
    movements = await moves.movements(rollout)
    assert {movements[shard].phase for shard in BEFORE_SWITCH} == {"called off"}
    assert {movements[shard].phase for shard in AFTER_SWITCH} == {"done"}


async def test_a_rollout_that_is_replaced_in_the_middle_leaves_every_shard_where_the_newer_plan_has_it(
    moves: MoveStack,
) -> None:
    source, target = await moves.ends()
    before = await moves.shard_records()
    async with moves.load("replaced") as workload, moves.controller(*points()) as controller:
        older = await moves.order(target)
        await all_held(moves, controller)
        newer = await moves.order(source, door=target)
        controller.go()
        await moves.rest()
        await workload.progress(100)
        rollouts = await moves.rollouts()
        assert [rollouts[older].state, rollouts[newer].state] == ["superseded", "done"]
    after = await moves.shard_records()
    assert await moves.home() == source
    for shard in EVERYWHERE:
        has_switched = shard in AFTER_SWITCH
        assert after["DE", shard].epoch == before["DE", shard].epoch + 2 * has_switched, shard


async def test_law_l1_holds_when_a_new_law_forbids_the_target_in_the_middle(moves: MoveStack) -> None:
    """Once the law is effective nothing comes to `ams` any more, and what lies there goes, whoever wants it to stay."""
    if await moves.home() != "fra":
        async with moves.controller():
            await moves.order("fra")
            await moves.rest()
    async with moves.load("forbidden", doors=("fra", "sin")) as workload, moves.controller(*points()) as controller:
        before = await moves.shard_records()
        await moves.order("ams")
        await all_held(moves, controller)
        await moves.order("fra", jurisdictions="DE")
        controller.go()
        await moves.rest()
        await workload.progress(100)
    assert await moves.home() == "fra"
    after = await moves.shard_records()
    assert {after["DE", shard].epoch - before["DE", shard].epoch for shard in BEFORE_SWITCH} == {0}
    for idc in set(IDCS) - {"fra"}:
        assert "DE" not in {code for code, _ in await moves.counts(idc)}
    async with moves.controller():
        await moves.order("fra")
        await moves.rest()


@pytest.mark.parametrize("victim", ["controller", "source gateway", "source database", "target gateway"])
async def test_laws_l1_to_l4_survive_a_death_while_moves_are_called_off(moves: MoveStack, victim: str) -> None:
    source, target = await moves.ends()
    before = await moves.shard_records()
    closing = [f"before CloseShard DE/{shard}" for shard in range(4)]
    back = ["before ReopenShard DE/0", "after ReopenShard DE/1", "before PurgeShard DE/2", "after PurgeShard DE/3"]
    async with moves.load(f"back-{victim}") as workload, moves.controller(*closing, *back) as controller:
        rollouts = [await moves.move_shard(shard, target) for shard in range(4)]
        await controller.held(*closing)
        for rollout in rollouts:
            await moves.cancel(rollout)
        controller.go(*closing)
        await controller.held()
        await moves.strike(victim, controller, source, target)
        await workload.progress(100)
    after = await moves.shard_records()
    for shard in range(4):
        old, new = before["DE", shard], after["DE", shard]
        assert (new.owner, new.epoch, new.attempt) == (source, old.epoch, old.attempt + 2), shard
