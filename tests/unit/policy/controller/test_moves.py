from __future__ import annotations

from dataclasses import replace

import pytest

from policy.cluster import KnownRollout, KnownShard
from policy.controller.decide import CallOff, NoteRollout, Start, World, decide
from policy.controller.moves import Limits, wanted_moves
from policy.model import Phase
from policy.records import Leftover, PlannedMove, PlanRecord, RolloutRecord, ShardRecord
from tests.unit.policy.controller.test_decide import LAW, PEERS, every_shard

NOW = "2026-01-01T00:00:01+00:00"


def rollout(name: str = "r00000002", state: str = "running", total: int = 4, second: int = 0) -> KnownRollout:
    return KnownRollout(RolloutRecord(name, 1, state, f"2026-01-01T00:00:{second:02d}+00:00", total), 5)


def plan(name: str = "r00000002", *, law: tuple[int, ...] = ()) -> PlanRecord:
    moves = (PlannedMove("DE", shard, "fra", "ams", shard in law) for shard in range(4))
    return PlanRecord(name, tuple(moves))


def world(shards=None, rollouts=None, plans=None, **words) -> World:
    rollouts = rollouts if rollouts is not None else (rollout(),)
    plans = plans if plans is not None else {"r00000002": plan()}
    return World(LAW, {**every_shard("serving"), **(shards or {})}, PEERS, rollouts, {}, NOW, plans=plans, **words)


def known(shard: int, phase: Phase, **words) -> dict:
    record = ShardRecord("fra", 1, phase, 1, rollout="r00000002", attempt=1)
    return {("DE", shard): KnownShard(replace(record, **words), 9)}


def started(turn) -> list[int]:
    return [it.shard[1] for it in turn.actions if isinstance(it, Start)]


def called_off(turn) -> list[int]:
    return [it.shard[1] for it in turn.actions if isinstance(it, CallOff)]


def test_as_many_moves_start_as_the_limit_of_a_pair_allows():
    assert started(decide(world(limits=Limits(per_pair=2, per_idc=9)))) == [0, 1]
    assert started(decide(world(known(0, Phase.COPYING, target="ams"), limits=Limits(2, 9)))) == [1]
    assert started(decide(world(limits=Limits(per_pair=9, per_idc=3)))) == [0, 1, 2]


def test_what_the_law_demands_starts_first():
    assert started(decide(world(plans={"r00000002": plan(law=(3,))}, limits=Limits(1, 1)))) == [3]


def test_a_move_in_trouble_holds_up_no_other():
    stuck = known(0, Phase.COPYING, target="ams")
    assert started(decide(world(stuck, limits=Limits(1, 1)))) == []
    turn = decide(world(stuck, limits=Limits(1, 1), troubles={("DE", 0): "copying: ams: UNAVAILABLE"}))
    assert started(turn) == [1]
    assert "1 shard in trouble (the first is DE/0: copying: ams: UNAVAILABLE)" in turn.sentence


def test_a_shard_that_rests_is_not_tried_again_yet():
    assert started(decide(world(resting=frozenset({("DE", 0)}), limits=Limits(1, 1)))) == [1]


def test_nothing_starts_toward_an_idc_without_a_gateway_and_the_sentence_says_so():
    dead = replace(world(), peers={**PEERS, "ams": ()})
    turn = decide(dead)
    assert started(turn) == []
    assert "4 shards wait to be moved (ams has no live gateway)" in turn.sentence
    assert not turn.is_done


@pytest.mark.parametrize("phase", [Phase.COPYING, Phase.DRAINING, Phase.CLOSING])
def test_a_move_that_no_rollout_wants_is_called_off_before_its_switch(phase):
    turn = decide(world(known(0, phase, target="ams"), rollouts=(), plans={}))
    assert called_off(turn) == [0]


@pytest.mark.parametrize("phase", [Phase.OPENING, Phase.ABORTING, Phase.PURGING])
def test_a_move_past_its_switch_or_on_its_way_back_goes_on(phase):
    left = (Leftover("fra", 1, 1, "r00000002", 3, "d"),)
    turn = decide(world(known(0, phase, owner="ams", epoch=2, leftovers=left), rollouts=(), plans={}))
    assert called_off(turn) == []
    assert not turn.is_done


def test_a_newer_plan_with_another_target_calls_the_move_off():
    elsewhere = PlanRecord("r00000003", (PlannedMove("DE", 0, "fra", "sin"),))
    rollouts = (rollout(), rollout("r00000003", second=1))
    turn = decide(world(known(0, Phase.COPYING, target="ams"), rollouts, {"r00000002": plan(), "r00000003": elsewhere}))
    assert called_off(turn) == [0]
    (call_off,) = [it for it in turn.actions if isinstance(it, CallOff)]
    assert call_off.reason == "it is to go to sin instead"


def test_a_newer_plan_with_the_same_target_lets_the_move_go_on():
    rollouts = (rollout(), rollout("r00000003", second=1))
    plans = {"r00000002": plan(), "r00000003": plan("r00000003")}
    assert called_off(decide(world(known(0, Phase.COPYING, target="ams"), rollouts, plans))) == []
    assert wanted_moves(rollouts, plans)["DE", 0].rollout.record.rollout == "r00000003"


def test_a_paused_rollout_starts_nothing_and_lets_what_is_under_way_go_on():
    turn = decide(world(known(0, Phase.COPYING, target="ams"), (rollout(state="paused"),)))
    assert (started(turn), called_off(turn)) == ([], [])


def test_a_cancelled_rollout_goes_on_with_what_the_law_demands():
    under_way = {**known(0, Phase.COPYING, target="ams"), **known(1, Phase.COPYING, target="ams")}
    turn = decide(
        world(under_way, (rollout(state="cancelling"),), {"r00000002": plan(law=(1, 2))}, limits=Limits(9, 9))
    )
    assert called_off(turn) == [0]
    assert started(turn) == [2]


def note_of(turn) -> RolloutRecord:
    (note,) = [it for it in turn.actions if isinstance(it, NoteRollout)]
    return note.record


def test_a_rollout_is_done_when_every_shard_is_there_and_nothing_is_left_behind():
    moved = {shard: item for n in range(4) for shard, item in known(n, Phase.SERVING, owner="ams", epoch=2).items()}
    record = note_of(decide(world(moved)))
    assert (record.state, record.shards_done, record.end_time) == ("done", 4, NOW)
    left = (Leftover("fra", 1, 1, "r00000002", 3, "d"),)
    moved |= known(3, Phase.PURGING, owner="ams", epoch=2, leftovers=left)
    record = note_of(decide(world(moved)))
    assert (record.state, record.shards_done, record.end_time) == ("running", 3, "")


def test_a_cancelled_rollout_ends_when_nothing_of_it_is_under_way():
    record = note_of(decide(world(known(0, Phase.ABORTING, target="ams"), (rollout(state="cancelling"),))))
    assert record.state == "cancelling"
    moved = known(3, Phase.SERVING, owner="ams", epoch=2)
    record = note_of(decide(world(moved, (rollout(state="cancelling"),))))
    assert (record.state, record.shards_done) == ("cancelled", 1)


def test_no_other_shard_is_touched():
    touched = {it.shard for it in decide(world(limits=Limits(99, 99))).actions if isinstance(it, Start | CallOff)}
    assert touched == {("DE", shard) for shard in range(4)}
