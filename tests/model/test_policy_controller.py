"""The controller converges from every interrupted prefix of what it does, and never assigns against the law (L1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from policy.cluster import KnownShard
from policy.compile import compile_policy
from policy.controller.decide import SHARDS_PER_TRANSACTION, Assign, KnownRollout, NoteRollout, Open, World, decide
from policy.loading import load_policy
from policy.records import RolloutRecord, ShardRecord
from tests.support.cluster import POLICY

IDCS = ("sha", "fra", "ams", "sin")


@dataclass
class Cluster:
    """What etcd and the databases hold; each method is one atomic effect."""

    policy: object
    shards: dict = field(default_factory=dict)
    fences: set = field(default_factory=set)
    rollout: RolloutRecord | None = None
    revision: int = 1

    def world(self, alive) -> World:
        rollouts = (KnownRollout(self.rollout, 1),) if self.rollout.state == "running" else ()
        return World(self.policy, dict(self.shards), dict.fromkeys(alive, ("a:1",)), rollouts, {}, "now")

    def effects(self, action):
        """The action as a list of atomic effects, any prefix of which may be all that happens."""
        if isinstance(action, Assign):
            return [lambda: self._assign(action)]
        if isinstance(action, NoteRollout):
            return [lambda: setattr(self, "rollout", action.record)]
        assert isinstance(action, Open)
        chunks = [
            action.shards[start : start + SHARDS_PER_TRANSACTION]
            for start in range(0, len(action.shards), SHARDS_PER_TRANSACTION)
        ]
        return [lambda: self._fence(action), *(lambda chunk=chunk: self._serve(chunk) for chunk in chunks)]

    def _assign(self, action):
        assert len(action.owners) + 2 <= 128
        for code, shard, owner in action.owners:
            assert (code, shard) not in self.shards, "an assignment never overwrites"
            self.revision += 1
            self.shards[code, shard] = KnownShard(ShardRecord(owner, 1, "opening", 1), self.revision)

    def _fence(self, action):
        for code, shard in action.shards:
            record = self.shards[code, shard].record
            assert record.owner == action.idc
            law = self.policy.regions[code]
            assert self.policy.idcs[record.owner] in law.jurisdictions, "law L1"
            self.fences.add((code, shard, record.owner, record.epoch))

    def _serve(self, chunk):
        assert len(chunk) + 1 <= 128
        for shard in chunk:
            record = self.shards[shard].record
            assert (*shard, record.owner, record.epoch) in self.fences, "law L2: no route before its fence"
            self.revision += 1
            self.shards[shard] = KnownShard(replace(record, phase="serving"), self.revision)


def policy_of(shards: int, fra: int, ams: int):
    text = POLICY.replace("shards: 4", f"shards: {shards}").replace("fra: 50, ams: 50", f"fra: {fra}, ams: {ams}")
    return compile_policy(load_policy(text).document, 1)


@given(
    st.sampled_from([1, 3, 64, 200]),
    st.integers(1, 9),
    st.integers(0, 9),
    st.lists(st.tuples(st.sets(st.sampled_from(IDCS)), st.integers(0, 12)), max_size=6),
)
def test_the_controller_converges_from_every_interrupted_prefix(shards, fra, ams, interruptions):
    policy = policy_of(shards, fra, ams)
    cluster = Cluster(policy, rollout=RolloutRecord("r", 1, "running", "", 4 * shards))
    for alive, effects_until_the_crash in interruptions:
        effects = [effect for action in decide(cluster.world(alive)).actions for effect in cluster.effects(action)]
        for effect in effects[:effects_until_the_crash]:
            effect()
    for _ in range(5):
        turn = decide(cluster.world(IDCS))
        for action in turn.actions:
            for effect in cluster.effects(action):
                effect()
    assert decide(cluster.world(IDCS)).actions == ()
    assert turn.is_done
    assert (cluster.rollout.state, cluster.rollout.shards_done) == ("done", 4 * shards)
    assert len(cluster.shards) == 4 * shards
    assert all(known.record.phase == "serving" for known in cluster.shards.values())
