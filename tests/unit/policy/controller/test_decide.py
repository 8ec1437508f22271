from __future__ import annotations

from policy.cluster import KnownShard
from policy.compile import compile_policy
from policy.controller.decide import STEPS, Assign, KnownRollout, NoteRollout, Open, World, decide
from policy.loading import load_policy
from policy.model import Phase
from policy.records import RolloutRecord, ShardRecord
from tests.support.cluster import POLICY

LAW = compile_policy(load_policy(POLICY).document, 1)
PEERS = {"sha": ("sha:1",), "fra": ("fra:1",), "ams": ("ams:1",), "sin": ("sin:1",)}
RUNNING = RolloutRecord("r00000001", 1, "running", "2026-01-01T00:00:00+00:00", 16)


def every_shard(phase: str, **owners: str) -> dict[tuple[str, int], KnownShard]:
    default = {"CN": "sha", "DE": "fra", "FR": "ams", "SG": "sin"}
    return {
        (code, shard): KnownShard(ShardRecord(owners.get(code, idc), 1, phase, 1), 7)
        for code, idc in default.items()
        for shard in range(4)
    }


def test_every_phase_has_a_step_or_is_an_end():
    assert set(STEPS) == {None, *Phase}


def test_shards_without_a_record_are_assigned_by_weight():
    turn = decide(World(LAW, {}, PEERS))
    (action,) = turn.actions
    assert isinstance(action, Assign)
    owners = {(code, shard): idc for code, shard, idc in action.owners}
    assert [owners["DE", shard] for shard in range(4)].count("fra") == 2
    assert {owners["CN", shard] for shard in range(4)} == {"sha"}
    assert turn.sentence == "policy revision 1: assigning 16 shards (4 to ams, 4 to fra, 4 to sha, 4 to sin)"


def test_opening_shards_are_opened_at_their_owner_and_a_dead_idc_is_named_and_does_not_stop_the_others():
    turn = decide(World(LAW, every_shard("opening"), {**PEERS, "ams": ()}))
    assert {action.idc for action in turn.actions if isinstance(action, Open)} == {"sha", "fra", "sin"}
    assert "4 shards of ams wait for a gateway there, and none is alive" in turn.sentence
    assert not turn.is_done


def test_a_failure_is_part_of_the_sentence():
    turn = decide(World(LAW, every_shard("opening"), PEERS, failures={"fra": "its database is down"}))
    assert "opening 4 shards at fra again after: its database is down" in turn.sentence


def test_when_every_shard_serves_the_rollout_is_done_and_nothing_else_happens():
    world = World(LAW, every_shard("serving"), PEERS, (KnownRollout(RUNNING, 9),), now="2026-01-01T00:00:01+00:00")
    turn = decide(world)
    (note,) = turn.actions
    assert isinstance(note, NoteRollout)
    assert (note.record.state, note.record.shards_done, note.mod_revision) == ("done", 16, 9)
    assert note.record.end_time == world.now
    assert turn.is_done
    assert decide(World(LAW, every_shard("serving"), PEERS)).actions == ()


def test_law_l1_a_shard_recorded_at_an_idc_that_the_law_does_not_permit_is_not_opened():
    turn = decide(World(LAW, every_shard("opening", DE="sha"), PEERS, (KnownRollout(RUNNING, 9),)))
    assert not any(shard[0] == "DE" for it in turn.actions if isinstance(it, Open) for shard in it.shards)
    assert "leaving 4 shards alone" in turn.sentence
    assert not turn.is_done


def test_shards_of_regions_that_the_policy_does_not_know_are_left_alone():
    strangers = {("US", 0): KnownShard(ShardRecord("sin", 1, "opening", 1), 7)}
    turn = decide(World(LAW, {**every_shard("serving"), **strangers}, PEERS))
    assert turn.actions == ()
