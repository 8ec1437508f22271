"""Laws L5 and L1 for jobs: each change is entered once, and what jobs keep lies only where the shard is owned.

What is real: two databases, the store of jobs, and the moves between them. What is modelled, in a few lines of plain
Python: who owns a shard, which claim is the newest, and which changes have been entered. Runners are never trusted:
they keep old claims, read ahead, stop in the middle of a transaction, and commit whenever they like, twice if they can.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from policy.errors import StaleAttempt
from rowstore.moving import MoveStep
from tests.support.job_world import IDCS, SHARDS, Batch, JobWorld
from tests.support.postgres import postgres_server

if TYPE_CHECKING:
    from datetime import datetime

    from rowstore.jobs.model import Claim
    from rowstore.moving.model import ShardDigest
    from runtime.embedded.postgres import EmbeddedPostgres

__all__ = ["postgres_server"]

RUNNERS = ("one.1", "two.1", "three.1")
ACTS = st.sampled_from(["take", "take", "commit", "commit", "commit", "read late", "claim anywhere", "die"])
DICE = st.integers(1, 2**20)
SHARD, IDC = st.sampled_from(SHARDS), st.sampled_from(IDCS)


@dataclass
class Shard:
    """A shard as the model has it."""

    number: int
    owner: str = "a"
    epoch: int = 1
    mode: str = "serving"
    attempt: int = 0
    is_moving: bool = False
    last_seq: int = 0
    seq: int = 0
    token: int = 0
    is_held: bool = False
    """Whether anybody may hold the newest token."""
    is_known: bool = False
    """Whether the job has an offset here."""
    passed: tuple[int, datetime] | None = None
    entered: list[int] = field(default_factory=list)
    leftovers: dict[str, tuple[MoveStep, ShardDigest | None]] = field(default_factory=dict)
    """IDCs where something may lie that is not the owner's, and how it is to be purged."""

    @property
    def target(self) -> str:
        return IDCS[1 - IDCS.index(self.owner)]

    @property
    def step(self) -> MoveStep:
        return MoveStep("DE", self.number, self.epoch, self.attempt)

    def lets_commit(self, batch: Batch) -> bool:
        held = batch.held
        is_newest = (held.token, held.epoch, held.seq) == (self.token, self.epoch, self.seq)
        return is_newest and self.is_held and self.owner == batch.idc and self.mode in ("serving", "draining")

    def lacks(self, firing: datetime) -> bool:
        """Whether a pass has still to be made for a firing."""
        has_passed = self.passed is not None and self.passed[0] == self.epoch and self.passed[1] >= firing
        return self.last_seq > self.seq and not has_passed


class Jobs(RuleBasedStateMachine):
    """Two shards, two IDCs, and a few runners."""

    world: JobWorld
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.shards = {number: Shard(number) for number in SHARDS}
        self.claims: list[tuple[str, Claim]] = []
        self.batches: list[Batch] = []
        self.firings: dict[str, list[datetime]] = {idc: [] for idc in IDCS}
        self.seen: dict[int, tuple[int, int]] = {}
        self.do(self.world.reset())

    def do(self, coroutine):
        return self.runner.run(coroutine)

    @initialize()
    def begin(self):
        for shard in SHARDS:
            self.put(shard, 5)
        for idc in IDCS:
            self.fire(idc, ["fire"])

    # ---- writers and runners ----

    @rule(shard=SHARD, number=st.integers(1, 5))
    def put(self, shard, number):
        it = self.shards[shard]
        if it.mode == "serving":
            it.last_seq = self.do(self.world.put(it.owner, shard, it.epoch, number))

    @rule(shard=SHARD, runner=st.sampled_from(RUNNERS), acts=st.lists(ACTS, min_size=2, max_size=8), dice=DICE)
    def run(self, shard, runner, acts, dice):
        """Whatever a runner does, and whatever befalls it; `dice` says how, and to which of its batches."""
        for act in acts:
            dice = dice * 1103515245 % 2**31 + 12345
            if act == "claim anywhere":
                self.claim(IDCS[dice % 2], shard, runner, epoch=self.shards[shard].epoch - dice // 2 % 2)
            elif act == "take":
                self.take(shard, runner, dice)
            elif act == "read late" and self.claims:
                # Under any claim that was ever made, however old.
                self.read(self.claims[-1 - dice % min(6, len(self.claims))], dice)
            elif self.batches:
                batch = self.batches[-1 - dice % min(4, len(self.batches))]
                if act == "die":
                    self.do(self.world.roll_back(batch))
                    self.batches.remove(batch)
                elif act == "commit":
                    self.commit(batch, is_told=dice % 3 > 0, is_again=dice % 5 == 0)

    def claim(self, idc, shard, runner, *, epoch):
        """Any runner, with any table, asks for any shard."""
        it = self.shards[shard]
        held = self.do(self.world.claim(idc, runner, shard, epoch))
        if idc != it.owner or it.mode != "serving" or epoch != it.epoch:
            assert held is None, "law L5: a shard was claimed where it is not served"
            return
        assert held is not None
        it.token, it.is_held, it.is_known = it.token + 1, True, True
        assert (held.token, held.seq, held.last_seq) == (it.token, it.seq, it.last_seq)
        self.claims.append((idc, held))

    def take(self, shard, runner, dice):
        """As it should be: claim, then read."""
        it = self.shards[shard]
        self.claim(it.owner, shard, runner, epoch=it.epoch)
        if it.mode == "serving":
            self.read(self.claims[-1], dice)

    def read(self, claim, dice):
        """Reads a page; the handler may then stop half-way, its entries made and not committed."""
        batch = self.do(self.world.read(*claim, 1 + dice // 7 % 4))
        if batch is not None:
            self.batches.append(batch)
            if dice % 2 and sum(other.connection is not None for other in self.batches) < 4:
                self.do(self.world.begin(batch))

    def commit(self, batch, *, is_told, is_again):
        """A batch is committed, however late; its answer may be lost, and it may be tried again."""
        it = self.shards[batch.held.shard]
        is_end = batch.through == batch.last_seq
        firing = self.firings[batch.idc][0] if is_end and self.firings[batch.idc] else None
        wanted = it.lets_commit(batch)
        assert self.do(self.world.commit(batch, firing)) == wanted
        if wanted:
            it.seq = batch.through
            it.entered += batch.seqs
            if firing is not None:
                it.passed = (it.epoch, max(firing, it.passed[1]) if it.passed and it.passed[0] == it.epoch else firing)
            if is_told:
                self.claims.append((batch.idc, batch.held._replace(seq=batch.through)))
        if not is_again:
            self.batches.remove(batch)

    # ---- firings ----

    @rule(idc=IDC, acts=st.lists(st.sampled_from(["fire", "pass", "finish"]), min_size=1, max_size=4))
    def fire(self, idc, acts):
        firings = self.firings[idc]
        for act in acts:
            if act == "fire" and len(firings) < 3:
                firings.append(self.do(self.world.fire(idc)))
            elif act == "pass":
                self.make_passes(idc)
            elif act == "finish" and firings:
                self.finish(idc, firings[0])

    def make_passes(self, idc):
        """By a runner that does everything right."""
        firing = self.firings[idc][0] if self.firings[idc] else None
        for found in self.do(self.world.pending(idc, firing)):
            it = self.shards[found.shard]
            if it.mode == "serving":
                self.claim(idc, found.shard, RUNNERS[0], epoch=it.epoch)
                batch = self.do(self.world.read(idc, self.claims[-1][1], 100))
                assert self.do(self.world.commit(batch, firing))
                it.seq, it.entered = batch.through, it.entered + batch.seqs
                if firing is not None:
                    it.passed = (it.epoch, firing)

    def finish(self, idc, firing):
        served = [it for it in self.shards.values() if it.owner == idc and it.mode in ("serving", "draining")]
        lacking = [it.number for it in served if it.lacks(firing)]
        assert [shard.shard for shard in self.do(self.world.pending(idc, firing))] == lacking
        assert self.do(self.world.finish(idc, firing)) == (not lacking)
        if not lacking:
            assert not self.do(self.world.finish(idc, firing)), "a firing ends once"
            self.firings[idc].pop(0)

    # ---- moves ----

    @rule(shard=SHARD, steps=st.sampled_from([1, 1, 2, 3, 5]), is_repeated=st.booleans())
    def move(self, shard, steps, is_repeated):
        """A move goes on by some steps."""
        it = self.shards[shard]
        for _ in range(steps):
            if not it.is_moving:
                self.begin_move(it)
            elif it.mode == "serving":
                self.do(self.world.movers[it.owner].drain(it.step))
                it.mode = "draining"
            elif it.mode == "draining":
                self.close(it)
            else:
                self.switch(it, is_repeated=is_repeated)
                return

    def begin_move(self, it):
        it.attempt, it.is_moving = it.attempt + 1, True
        self.do(self.world.movers[it.owner].begin_export(it.step))
        it.leftovers.pop(it.target, None)
        self.do(self.world.copy(it.owner, it.target, it.step))

    def close(self, it):
        self.do(self.world.close_shard(it.owner, it.step))
        it.mode = "closed"
        if it.is_held:
            it.token, it.is_held = it.token + 1, False

    def switch(self, it, *, is_repeated):
        """The point of no return; the closing may be repeated, before it and after."""
        source, step = it.owner, it.step
        if is_repeated:
            self.close(it)
        digest = self.do(self.world.last_round(source, it.target, step, it.last_seq))
        if is_repeated:
            self.close(it)
        self.do(self.world.movers[it.target].open(step))
        it.owner, it.epoch, it.mode, it.is_moving = it.target, it.epoch + 1, "serving", False
        it.leftovers[source] = (step, digest)

    @precondition(lambda self: any(it.is_moving for it in self.shards.values()))
    @rule(shard=SHARD)
    def call_off(self, shard):
        it = self.shards[shard]
        if it.is_moving:
            late = it.step
            it.attempt, it.is_moving, it.mode = it.attempt + 1, False, "serving"
            self.do(self.world.movers[it.owner].reopen(it.step))
            it.leftovers[it.target] = (it.step, None)
            # Its closing comes now.
            with pytest.raises(StaleAttempt):
                self.do(self.world.close_shard(it.owner, late))

    @precondition(lambda self: any(it.leftovers for it in self.shards.values()))
    @rule(shard=SHARD)
    def purge(self, shard):
        it = self.shards[shard]
        for idc, (step, digest) in list(it.leftovers.items()):
            assert self.do(self.world.movers[idc].purge(step, digest)).remaining == 0
            del it.leftovers[idc]

    # ---- the laws ----

    @invariant()
    def the_laws(self):
        contents = self.do(self.world.contents())
        for number, it in self.shards.items():
            offset, entries, _ = contents[it.owner, number]
            assert entries == sorted(set(entries)), "law L5: a change was entered twice"
            assert entries == sorted(it.entered), "law L5: what was committed is not what was entered"
            assert offset == ((it.seq, it.token) if it.is_known else None)
            before = self.seen.get(number, (0, 0))
            assert before[0] <= it.seq, "an offset has gone back"
            assert before[1] <= it.token, "a token has gone back"
            self.seen[number] = (it.seq, it.token)
            # While it is copied, and until what it has left is purged, something may lie elsewhere.
            if not it.is_moving and not it.leftovers:
                assert contents[it.target, number][2] == 0, "law L1: something lies where the shard is not owned"

    def teardown(self):
        """Undisturbed, each change that was ever made is entered, once, and nothing lies anywhere else."""
        for batch in self.batches:
            self.do(self.world.roll_back(batch))
        for number, it in self.shards.items():
            if it.is_moving:
                self.call_off(number)
            self.purge(number)
        for idc in IDCS:
            self.firings[idc].clear()
            self.make_passes(idc)
        self.the_laws()
        for it in self.shards.values():
            assert it.entered == list(range(1, it.last_seq + 1)), "law L5: a change was lost, or entered twice"


def _run(server: EmbeddedPostgres, **how: object) -> None:
    with asyncio.Runner() as runner:
        world = runner.run(JobWorld.open(server))
        machine = type("JobsHere", (Jobs,), {"world": world, "runner": runner})
        try:
            run_state_machine_as_test(
                machine, settings=settings(deadline=None, suppress_health_check=list(HealthCheck), **how)
            )
        finally:
            runner.run(world.close())


def test_laws_l5_and_l1_hold_for_whatever_runners_and_moves_do(postgres_server: EmbeddedPostgres) -> None:
    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    _run(postgres_server, max_examples=20, stateful_step_count=30, derandomize=True, phases=phases)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_laws_l5_and_l1_hold_for_longer_stories(postgres_server: EmbeddedPostgres) -> None:
    _run(postgres_server, max_examples=300, stateful_step_count=80)
