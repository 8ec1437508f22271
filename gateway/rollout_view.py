"""A rollout with its moves, as etcd has them: what was planned, and how far each shard is.

The controller writes a record for a move when it begins; before, the move is waiting. A move that another rollout had
begun goes on under that one's name, so its record is looked for there. A watch tells everything first and then what
has changed, at most ten times a second, however fast the controller writes.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

from gateway.policy_messages import move_message, rollout_message
from policy.model import Phase
from policy.records import MoveRecord, PlanRecord, RolloutRecord, ShardRecord
from policy.store import told_as_ours

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from policy.intent import Shard
    from policy.records import PlannedMove
    from policy.store import PolicyStore
    from regiongate.v1 import policy_service_pb2 as pb
    from runtime.etcd import FollowBatch, KeyValue

WAITING: Final = "waiting"
DONE: Final = "done"
CALLED_OFF: Final = "called off"
PAUSE_SECONDS: Final = 0.1
"""Between two messages of a watch."""


class RolloutView:
    """What is known of one rollout; fed with keys and values in any order."""

    def __init__(self, store: PolicyStore, plan: PlanRecord, record: RolloutRecord) -> None:
        self._store = store
        self._planned: dict[Shard, PlannedMove] = {(move.region_code, move.shard): move for move in plan.moves}
        self.record = record
        self._moves: dict[Shard, MoveRecord] = {}
        self._shards: dict[Shard, ShardRecord] = {}
        self._touched: set[Shard] = set(self._planned)

    @classmethod
    async def open(cls, store: PolicyStore, rollout: str) -> RolloutView:
        """What is so for ever, and the rollout as it is now; raises `RevisionNotFound`."""
        record = await store.rollout(rollout)
        with told_as_ours():
            item = await store.client.get(store.keys.plan(rollout))
        return cls(store, PlanRecord.decode(item.value) if item else PlanRecord(rollout), record)

    async def read(self) -> pb.Rollout:
        """The rollout with all of its moves."""
        if self._planned:
            with told_as_ours():
                for section in self.sections[1:]:
                    for item in (await self._store.client.list(section)).items:
                        self._take(item)
        return await self.message()

    @property
    def sections(self) -> tuple[str, ...]:
        """Prefixes of what is to be known."""
        keys, rollout = self._store.keys, self.record.rollout
        own = keys.rollout(rollout)
        return (own, keys.moves_of(rollout), keys.shards) if self._planned else (own,)

    def take(self, batch: FollowBatch) -> bool:
        """Takes changes in; tells whether there is anything to say."""
        state, before = self.record.state, self.record
        for item in (*batch.items, *(event.item for event in batch.events if event.kind == "put")):
            self._take(item)
        if self.record.state != state:
            self._touched.update(self._planned)
        return bool(self._touched) or self.record != before

    async def message(self) -> pb.Rollout:
        """The rollout with those of its moves that have changed since the last message."""
        touched, self._touched = self._touched, set()
        for shard in touched:
            await self._find_elsewhere(shard)
        return rollout_message(self.record, [self._move(it) for shard, it in self._planned.items() if shard in touched])

    def _take(self, item: KeyValue) -> None:
        keys = self._store.keys
        with suppress(ValueError):  # what cannot be read is not told
            if item.key == keys.rollout(self.record.rollout):
                self.record = RolloutRecord.decode(item.value)
            elif item.key.startswith(keys.shards):
                shard = keys.parse_shard(item.key)
                if shard in self._planned:
                    self._shards[shard] = ShardRecord.decode(item.value)
                    self._touched.add(shard)
            elif item.key.startswith(keys.moves):
                self._take_move(MoveRecord.decode(item.value))

    def _take_move(self, move: MoveRecord) -> None:
        shard = move.region_code, move.shard
        planned, known = self._planned.get(shard), self._moves.get(shard)
        if planned is None or move.target != planned.target:
            return
        is_own = move.rollout == self.record.rollout
        if is_own or (known is not None and known.rollout == move.rollout):
            self._moves[shard] = move
            self._touched.add(shard)

    async def _find_elsewhere(self, shard: Shard) -> None:
        """The record of a move that another rollout has begun, and this one has taken over."""
        record, planned = self._shards.get(shard), self._planned[shard]
        if record is None or shard in self._moves or record.rollout in ("", self.record.rollout):
            return
        if planned.target in (record.target, record.owner):
            with told_as_ours():
                item = await self._store.client.get(self._store.keys.move(record.rollout, *shard))
            move = MoveRecord.decode(item.value) if item else None
            if move is not None and move.target == planned.target:
                self._moves[shard] = move

    def _move(self, planned: PlannedMove) -> pb.ShardMove:
        shard = planned.region_code, planned.shard
        record, owner = self._moves.get(shard), self._owner(shard)
        is_wanted = self.record.wants(required_by_law=planned.required_by_law)
        if record is not None and not (record.phase == CALLED_OFF and is_wanted):
            return move_message(planned, record.phase, record)
        if owner == planned.target:
            return move_message(planned, DONE, record)
        if not is_wanted:
            is_superseded = self.record.state == "superseded"
            return move_message(planned, CALLED_OFF, record, self.record.note if is_superseded else "")
        return move_message(planned, WAITING, record)

    def _owner(self, shard: Shard) -> str:
        record = self._shards.get(shard)
        return record.owner if record is not None and record.phase != Phase.OPENING else ""


async def watch_rollout(store: PolicyStore, rollout: str) -> AsyncGenerator[pb.Rollout]:
    """The rollout with all of its moves, then each time what has changed, until it has ended.

    Raises:
        RevisionNotFound: there is none.
        StoreUnavailable: etcd refuses; while it only does not answer, nothing comes.
    """
    view = await RolloutView.open(store, rollout)
    news = asyncio.Event()

    async def follow() -> None:
        with told_as_ours():
            changes = store.client.follow(store.keys.root, sections=view.sections)
            async with aclosing(changes) as batches:
                async for batch in batches:
                    if view.take(batch) or batch.is_snapshot:
                        news.set()

    following = asyncio.create_task(follow())
    try:
        while True:
            await _first_of(following, news)
            news.clear()
            told = await view.message()
            # Of what is told here: while the message is on its way, the rollout may end, and that must be told, too.
            is_last = view.record.is_ended
            yield told
            if is_last:
                return
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def _first_of(following: asyncio.Task[None], news: asyncio.Event) -> None:
    """Waits for news; raises what has ended the following."""
    waiting = asyncio.create_task(news.wait())
    try:
        await asyncio.wait((following, waiting), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        waiting.cancel()
