"""Laws L1 to L3 for moves: whatever crashes, comes late, is cancelled or planned anew, all ends where the plan says.

What is real here: the controller's decisions and the table of steps. What is modelled: the two IDCs' fences and rows,
as `rowstore.moving` keeps them; etcd as a dictionary whose writes compare the record; and a network that may deliver
any call again, however late.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from policy import move
from policy.cluster import KnownShard
from policy.compile import compile_policy
from policy.controller.decide import CallOff, KnownRollout, NoteRollout, Start, World, decide
from policy.controller.moves import wanted_moves
from policy.loading import load_policy
from policy.model import Phase
from policy.move import MoveEvent
from policy.records import PlannedMove, PlanRecord, RolloutRecord, ShardRecord
from tests.support.cluster import POLICY

LAW = compile_policy(load_policy(POLICY).document, 1)
EUROPE = ("fra", "ams")
SHARD = ("DE", 0)
PEERS = {idc: (f"{idc}:1",) for idc in LAW.idcs}


class Refused(Exception):
    """A fence said no."""


@dataclass
class Fence:
    epoch: int
    mode: str
    attempt: int
    last_seq: int = 0


@dataclass
class Idc:
    """One IDC's database, for one shard: the statements of a move, each atomic."""

    fence: Fence | None = None
    rows: set = field(default_factory=set)
    copied: int = 0

    def begin_export(self, epoch, attempt):
        fence = self._fence(epoch)
        if fence.mode != "serving" or fence.attempt > attempt:
            raise Refused
        fence.attempt = attempt

    def drain(self, epoch, attempt):
        self._turn(epoch, attempt, ("serving", "draining"), "draining")

    def close(self, epoch, attempt):
        self._turn(epoch, attempt, ("draining", "closed"), "closed")
        return self.fence.last_seq

    def reopen(self, epoch, attempt):
        fence = self._fence(epoch)
        if fence.attempt > attempt or fence.mode not in ("serving", "draining", "closed"):
            raise Refused
        fence.mode, fence.attempt = "serving", attempt

    def _turn(self, epoch, attempt, modes, mode):
        fence = self._fence(epoch)
        if fence.attempt != attempt or fence.mode not in modes:
            raise Refused
        fence.mode = mode

    def _fence(self, epoch):
        if self.fence is None or self.fence.epoch != epoch:
            raise Refused
        return self.fence

    def begin_import(self, epoch, attempt):
        fence = self.fence
        if fence is None:
            self.fence = Fence(epoch, "importing", attempt)
        elif fence.mode not in ("closed", "importing") or fence.epoch > epoch or fence.attempt > attempt:
            raise Refused
        elif (fence.mode, fence.attempt) == ("importing", attempt):
            return
        else:
            self.fence = Fence(epoch, "importing", attempt)
        self.rows, self.copied = set(), 0

    def copy(self, source, epoch, attempt, source_modes):
        """One slice of the export, and its import."""
        theirs, mine = source.fence, self.fence
        if theirs is None or (theirs.epoch, theirs.attempt) != (epoch - 1, attempt) or theirs.mode not in source_modes:
            raise Refused
        if mine is None or (mine.mode, mine.epoch, mine.attempt) != ("importing", epoch, attempt):
            raise Refused
        self.rows |= {seq for seq in source.rows if seq > self.copied}
        self.copied = theirs.last_seq

    def open(self, epoch, attempt):
        fence = self.fence
        if (
            fence is None
            or (fence.epoch, fence.attempt) != (epoch, attempt)
            or fence.mode not in ("importing", "serving")
        ):
            raise Refused
        if fence.mode == "importing":
            self.fence = replace(fence, mode="serving", last_seq=self.copied)

    def purge(self, epoch, attempt, *, was_source):
        fence = self.fence
        if fence is None:
            self.fence = Fence(epoch + 1, "closed", attempt)
        elif was_source:
            if fence.mode != "closed" or fence.epoch != epoch or fence.attempt > attempt:
                raise Refused
        elif fence.mode not in ("closed", "importing") or fence.epoch > epoch + 1 or fence.attempt > attempt:
            raise Refused
        else:
            self.fence = Fence(max(fence.epoch, epoch + 1), "closed", attempt)
        self.fence.attempt = attempt
        self.rows = set()


class Moves(RuleBasedStateMachine):
    """One shard, moved to and fro."""

    def __init__(self):
        super().__init__()
        self.idcs = {idc: Idc() for idc in LAW.idcs}
        self.record = ShardRecord("fra", 1, Phase.SERVING, 1)
        self.mod = 1
        self.rollouts: list[KnownRollout] = []
        self.plans: dict[str, PlanRecord] = {}
        self.calls: list = []
        self.acknowledged: set[int] = set()
        self.closed_at = None

    @initialize()
    def first_owner(self):
        self.idcs["fra"].fence = Fence(1, "serving", 0)

    # ---- the world around ----

    @rule(idc=st.sampled_from(EUROPE), epoch=st.integers(1, 6))
    def write(self, idc, epoch):
        """Any gateway, with any table, tries to write anywhere: the fence decides."""
        fence = self.idcs[idc].fence
        if fence is not None and fence.mode == "serving" and fence.epoch == epoch:
            fence.last_seq += 1
            assert fence.last_seq not in self.acknowledged, "law L2: two writers have given out one sequence"
            self.idcs[idc].rows.add(fence.last_seq)
            self.acknowledged.add(fence.last_seq)

    @precondition(lambda self: len(self.rollouts) < 6)
    @rule(goal=st.sampled_from(EUROPE), law=st.booleans())
    def new_plan(self, goal, law):
        """A newer plan supersedes all others; it may want another target, or nothing."""
        self.rollouts = [KnownRollout(replace(r, state="superseded"), m + 1) for r, m in self.rollouts]
        name = f"r{len(self.rollouts):08d}"
        moves = (PlannedMove(*SHARD, self.record.owner, goal, law),) if goal != self.record.owner else ()
        self.plans[name] = PlanRecord(name, moves)
        record = RolloutRecord(name, 1, "running", f"2026-01-01T00:00:{len(self.rollouts):02d}+00:00", len(moves))
        self.rollouts.append(KnownRollout(record, 1))

    @precondition(lambda self: self.rollouts and self.rollouts[-1].record.state in ("running", "paused"))
    @rule(state=st.sampled_from(["cancelling", "paused", "running"]))
    def order(self, state):
        record, mod = self.rollouts[-1]
        self.rollouts[-1] = KnownRollout(replace(record, state=state), mod + 1)

    # ---- the controller ----

    def world(self):
        rollouts = tuple(it for it in self.rollouts if not it.record.is_ended)
        shards = self.others() | {SHARD: KnownShard(self.record, self.mod)}
        return World(LAW, shards, PEERS, rollouts, {}, "now", plans=self.plans)

    @staticmethod
    def others():
        """Every other shard serves."""
        home = {"CN": "sha", "DE": "fra", "FR": "ams", "SG": "sin"}
        return {
            (code, n): KnownShard(ShardRecord(idc, 1, Phase.SERVING, 1), 1)
            for code, idc in home.items()
            for n in range(LAW.regions[code].shards)
        }

    def put(self, record):
        self.record, self.mod = record, self.mod + 1

    @rule()
    def turn(self):
        for action in decide(self.world()).actions:
            if isinstance(action, Start):
                assert action.shard == SHARD, "no other shard is touched"
                self.put(move.start(self.record, action.target, action.rollout.record.rollout, ""))
            elif isinstance(action, CallOff):
                self.put(move.advance(self.record, MoveEvent.CALLED_OFF))
            elif isinstance(action, NoteRollout):
                self.rollouts = [
                    KnownRollout(action.record, m + 1) if r.rollout == action.record.rollout else KnownRollout(r, m)
                    for r, m in self.rollouts
                ]

    def call(self, name, idc, *arguments, **words):
        """Asks an IDC; the network may deliver the call again later, whatever comes of it now."""
        self.calls.append((name, idc, arguments, words))
        return getattr(self.idcs[idc], name)(*arguments, **words)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def late_packet(self, data):
        """A call of any earlier time arrives once more."""
        name, idc, arguments, words = data.draw(st.sampled_from(self.calls))
        with contextlib.suppress(Refused):
            getattr(self.idcs[idc], name)(*arguments, **words)

    @rule(stops_after=st.integers(0, 4))
    def drive(self, stops_after):
        """The driver of the phase takes its steps, and dies after some of them."""
        try:
            for number, effect in enumerate(self.effects()):
                if number >= stops_after:
                    return
                effect()
        except Refused:
            if self.record.phase in (Phase.DRAINING, Phase.CLOSING):
                self.put(move.advance(self.record, MoveEvent.CALLED_OFF))

    @rule(times=st.integers(1, 7))
    def go_on(self, times):
        """For a while nothing goes wrong."""
        for _ in range(times):
            self.turn()
            self.drive(9)

    def effects(self):
        record = self.record
        source, epoch, attempt, target = record.owner, record.epoch, record.attempt, record.target
        open_modes = ("serving", "draining", "closed")
        if record.phase == Phase.COPYING:
            yield lambda: self.call("begin_export", source, epoch, attempt)
            yield lambda: self.call("begin_import", target, epoch + 1, attempt)
            yield lambda: self.call("copy", target, self.idcs[source], epoch + 1, attempt, open_modes)
            yield lambda: self.put(move.advance(record, MoveEvent.COPIED))
        elif record.phase == Phase.DRAINING:
            yield lambda: self.call("drain", source, epoch, attempt)
            yield lambda: self.put(move.advance(record, MoveEvent.DRAINED))
        elif record.phase == Phase.CLOSING:
            yield lambda: self.call("close", source, epoch, attempt)
            yield lambda: self.call("copy", target, self.idcs[source], epoch + 1, attempt, ("closed",))
            yield self.switch
        elif record.phase == Phase.OPENING:
            left = record.leftovers[-1]
            yield lambda: self.call("open", source, epoch, left.attempt)
            yield lambda: self.put(move.advance(record, MoveEvent.OPENED))
        elif record.phase == Phase.ABORTING:
            yield lambda: self.call("reopen", source, epoch, attempt)
            yield lambda: self.put(move.advance(record, MoveEvent.REOPENED))
        elif record.phase == Phase.PURGING:
            left = record.leftovers[0]
            yield lambda: self.call("purge", left.idc, left.epoch, left.attempt, was_source=bool(left.digest))
            yield lambda: self.put(move.purge(record, left.idc))

    def switch(self):
        rollouts = [it for it in self.rollouts if not it.record.is_ended]
        wanted = wanted_moves(rollouts, self.plans).get(SHARD)
        if wanted is None or wanted.target != self.record.target:
            return
        assert wanted.rollout.record.wants(required_by_law=wanted.required_by_law)
        source, target = self.idcs[self.record.owner], self.idcs[self.record.target]
        assert source.rows == target.rows, "law L3: what the source held is at the target, durably, before the switch"
        self.put(move.switch(self.record, len(target.rows), "digest"))

    # ---- the laws ----

    @invariant()
    def law_l1_rows_lie_where_the_law_permits(self):
        assert not self.idcs["sha"].rows
        assert not self.idcs["sin"].rows

    @invariant()
    def law_l2_one_idc_may_write(self):
        assert sum(idc.fence is not None and idc.fence.mode == "serving" for idc in self.idcs.values()) <= 1

    @invariant()
    def law_l3_whoever_serves_has_all_that_was_acknowledged(self):
        for idc in self.idcs.values():
            if idc.fence is not None and idc.fence.mode in ("serving", "draining"):
                assert idc.rows == self.acknowledged

    def teardown(self):
        """From wherever this stopped, undisturbed turns and drives bring the shard to rest, where the plan says."""
        wants = wanted_moves([it for it in self.rollouts if not it.record.is_ended], self.plans).get(SHARD)
        for _ in range(40):
            self.turn()
            self.drive(9)
        assert self.record.phase == Phase.SERVING, self.record
        assert decide(self.world()).is_done or self.rollouts[-1].record.state == "paused"
        if wants is not None and wants.may_start:
            assert self.record.owner == wants.target
        holders = {idc for idc, it in self.idcs.items() if it.rows}
        assert holders <= {self.record.owner}, "rows lie once, at the owner"
        assert self.idcs[self.record.owner].rows == self.acknowledged


Moves.TestCase.settings = settings(
    max_examples=400, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMoves = Moves.TestCase
