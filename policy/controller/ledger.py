"""What one driver writes down: the shard's record, its move's record and the audit trail, in one transaction each.

Every write compares the election and the shard's record as the driver knows it. One that fails changes nothing, and
says `Overtaken`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from policy.move import UNDER_WAY
from policy.records import MoveRecord, RolloutRecord
from runtime.etcd import compare_mod_revision, put_op

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.audit.chain import AuditChain
    from policy.audit.entry import Fact
    from policy.controller.moves import Wanted
    from policy.follower import Follower
    from policy.intent import Shard
    from policy.records import Keys, Leftover, ShardRecord
    from runtime.etcd import Compare, EtcdClient, Op, TxnResult

_GUARD_TRIES = 4
"""The rollout's own note may change while a guarded write is on its way."""


class Overtaken(Exception):
    """The record is not as it was: look again."""


class Ledger:
    """One shard's records."""

    def __init__(
        self, shard: Shard, client: EtcdClient, follower: Follower, *, keys: Keys, election: Compare, audit: AuditChain
    ) -> None:
        self._client = client
        self._keys = keys
        self._election = election
        self._audit = audit
        self._follower = follower
        self._shard = shard
        self._key = keys.shard(*shard)
        self.record: ShardRecord | None = None
        """As it is known."""
        self.mod_revision = 0
        self._move: MoveRecord | None = None

    def look(self) -> ShardRecord | None:
        """The newest record that is known; None when the shard is at rest, not opened by a move, or gone."""
        seen = self._follower.state.shards.get(self._shard)
        if seen is not None and seen.mod_revision > self.mod_revision:
            self.record, self.mod_revision = seen
        record = self.record
        return record if record is not None and record.attempt and record.phase in UNDER_WAY else None

    def is_overtaken(self) -> bool:
        """Whether a newer record than the known one has been seen."""
        seen = self._follower.state.shards.get(self._shard)
        return seen is not None and seen.mod_revision > self.mod_revision

    async def until_overtaken(self) -> None:
        """Waits for a newer record than the known one."""
        while True:
            changed = self._follower.changed
            if self.is_overtaken():
                return
            await changed.wait()

    async def movement(self, record: ShardRecord) -> MoveRecord:
        """The record of the move that is under way."""
        if self._move is None or self._move.attempt != record.attempt:
            fresh = MoveRecord(
                record.rollout,
                *self._shard,
                record.owner,
                record.target,
                record.phase,
                record.attempt,
                start_time=now(),
            )
            self._move = await self._read(record.rollout) or fresh
        return self._move

    async def movement_of(self, left: Leftover, owner: str) -> MoveRecord:
        """The record of the move that has left rows behind."""
        if self._move is not None and (self._move.rollout, self._move.attempt) == (left.rollout, left.attempt):
            return self._move
        source, target = (left.idc, owner) if left.digest else (owner, left.idc)
        fresh = MoveRecord(left.rollout, *self._shard, source, target, "", left.attempt)
        return await self._read(left.rollout) or fresh

    async def _read(self, rollout: str) -> MoveRecord | None:
        item = await self._client.get(self._keys.move(rollout, *self._shard))
        return MoveRecord.decode(item.value) if item is not None else None

    async def write(
        self,
        before: ShardRecord,
        after: ShardRecord,
        compares: Sequence[Compare] = (),
        puts: Sequence[Op] = (),
        **changes: str | float,
    ) -> None:
        """The next record of the shard, and what has changed of its move; raises `Overtaken`."""
        movement = await self.movement(before)
        words: dict[str, Any] = {"rollout": after.rollout, "phase": after.phase, "attempt": after.attempt, **changes}
        movement = replace(movement, **words)
        request = self._request(after, movement, compares, puts)
        self._applied(await self._client.transact(*request), after, movement)

    async def write_guarded(
        self, before: ShardRecord, after: ShardRecord, wanted: Wanted, puts: Sequence[Op], **changes: str | float
    ) -> None:
        """The same, only while the rollout still wants the move.

        What compares is the rollout's revision; where only its note has changed, it is read and compared again.
        """
        key = self._keys.rollout(wanted.rollout.record.rollout)
        mod_revision = wanted.rollout.mod_revision
        for _ in range(_GUARD_TRIES):
            try:
                return await self.write(before, after, (compare_mod_revision(key, mod_revision),), puts, **changes)
            except Overtaken:
                item = await self._client.get(key)
                if item is None or item.mod_revision == mod_revision:
                    raise
                if not RolloutRecord.decode(item.value).wants(required_by_law=wanted.required_by_law):
                    raise
                mod_revision = item.mod_revision
        raise Overtaken

    async def end(self, after: ShardRecord, movement: MoveRecord, fact: Fact) -> None:
        """The end of a move, with its entry in the audit trail; raises `Overtaken`."""
        checks, changes = self._request(after, movement, (), ())
        self._applied(await self._audit.transact(checks, changes, fact), after, None)

    def _request(
        self, after: ShardRecord, movement: MoveRecord, compares: Sequence[Compare], puts: Sequence[Op]
    ) -> tuple[list[Compare], list[Op]]:
        move_key = self._keys.move(movement.rollout, *self._shard)
        return (
            [compare_mod_revision(self._key, self.mod_revision), self._election, *compares],
            [put_op(self._key, after.encode()), put_op(move_key, movement.encode()), *puts],
        )

    def _applied(self, result: TxnResult, after: ShardRecord, movement: MoveRecord | None) -> None:
        if not result.succeeded:
            raise Overtaken
        self.record, self.mod_revision, self._move = after, result.revision, movement

    async def tell(self, record: ShardRecord, **changes: str | float) -> None:
        """Writes down how far a move is, or why it is not; nothing rests on it."""
        words: dict[str, Any] = {**changes}
        self._move = replace(await self.movement(record), **words)
        key = self._keys.move(self._move.rollout, *self._shard)
        await self._client.transact(
            [compare_mod_revision(self._key, self.mod_revision), self._election], [put_op(key, self._move.encode())]
        )


def now() -> str:
    """RFC 3339, UTC."""
    return datetime.now(UTC).isoformat()
