"""Records and plans as they travel in `PolicyService`, and the tokens of its pages."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from policy.audit.facts import rules_hash
from policy.errors import InvalidInput, InvalidPageToken
from regiongate.v1 import policy_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from policy.draining import Stuck
    from policy.intent import Shard
    from policy.plan import HoldingChange, ShardMove
    from policy.records import MoveRecord, PlannedMove, PolicyRevision, RolloutRecord

DEFAULT_PAGE = 100
MAX_PAGE = 1000


def page_size(asked: int) -> int:
    """How many a page may have; raises `InvalidInput`."""
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidInput(f"page_size is 1 to {MAX_PAGE}", field_name="page_size")
    return asked or DEFAULT_PAGE


def write_token(kind: str, number: int) -> str:
    """A page token of one list."""
    return base64.urlsafe_b64encode(f"{kind}:{number}".encode()).decode()


def read_token(token: str, kind: str) -> int:
    """The number in a token of that kind, 0 without a token; raises `InvalidPageToken`."""
    if not token:
        return 0
    try:
        found, _, number = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").partition(":")
        if found == kind and 0 < int(number) < 2**63:
            return int(number)
    except (binascii.Error, ValueError):
        pass
    raise InvalidPageToken("the page token was not made by this list", field_name="page_token")


def revision_message(record: PolicyRevision, *, with_document: bool = True) -> pb.PolicyRevision:
    """A policy revision."""
    return pb.PolicyRevision(
        revision=record.revision,
        parent=record.parent,
        document=record.document if with_document else "",
        author=record.author,
        message=record.message,
        create_time=_time(record.create_time),
        rollout=record.rollout,
        rules_hash=rules_hash(record) if with_document else "",
    )


def change_messages(
    moves: Iterable[ShardMove], sizes: Mapping[Shard, tuple[int, int]] | None = None
) -> Iterator[pb.ShardChange]:
    """Shards that get an owner or another one; `sizes` has rows and bytes, where they are known."""
    known = sizes or {}
    for move in moves:
        message = pb.ShardChange(
            region_code=move.region_code,
            shard=move.shard,
            from_idc=move.from_idc,
            to_idc=move.to_idc,
            required_by_law=move.required_by_law,
        )
        if move.key in known:
            message.rows, message.bytes = known[move.key]
        yield message


def holding_message(change: HoldingChange) -> pb.HoldingChange:
    """IDCs that start or stop to hold a RegionCode."""
    return pb.HoldingChange(region_code=change.region_code, starts=change.starts, stops=change.stops)


def stuck_message(stuck: Stuck) -> pb.StuckShards:
    """Shards that no other IDC may hold."""
    return pb.StuckShards(region_code=stuck.region_code, shards=stuck.shards, reason=stuck.reason)


def rollout_message(record: RolloutRecord, moves: Iterable[pb.ShardMove] = ()) -> pb.Rollout:
    """A rollout."""
    return pb.Rollout(
        rollout=record.rollout,
        policy_revision=record.policy_revision,
        state=record.state,
        shards_total=record.shards_total,
        shards_done=record.shards_done,
        create_time=_time(record.create_time),
        end_time=_time(record.end_time),
        note=record.note,
        traceparent=record.traceparent,
        kind=record.kind,
        author=record.author,
        message=record.message,
        moves=moves,
    )


def move_message(planned: PlannedMove, phase: str, record: MoveRecord | None, note: str = "") -> pb.ShardMove:
    """One move: what was planned, and how far it is."""
    message = pb.ShardMove(
        region_code=planned.region_code,
        shard=planned.shard,
        from_idc=planned.source,
        to_idc=planned.target,
        phase=phase,
        note=note,
        required_by_law=planned.required_by_law,
    )
    if record is not None:
        message.MergeFrom(
            pb.ShardMove(
                attempt=record.attempt,
                rows_copied=record.rows,
                bytes_copied=record.bytes,
                rows_per_second=record.rows_per_second,
                stall_ms=record.stall_ms,
                digest=record.digest,
                note=note or record.note,
                start_time=_time(record.start_time),
                switch_time=_time(record.switch_time),
                end_time=_time(record.end_time),
                remaining=record.remaining,
            )
        )
    return message


def _time(text: str) -> Timestamp | None:
    if not text:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromisoformat(text))
    return stamp
