"""The parts of an export as they travel: `rowstore.moving.model` on one side, `ExportShardResponse` on the other.

Chunks are bytes that nobody here looks into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.values import read_time, set_time
from policy.errors import IllegalMove
from regiongate.v1 import shard_service_pb2 as pb
from rowstore.moving.model import End, Head, ShardDigest, SliceEnd, SliceStart, TableLayout

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

    from rowstore.moving.model import ExportPart


def encode_part(part: ExportPart) -> pb.ExportShardResponse:
    """The message that carries a part."""
    message = pb.ExportShardResponse()
    if isinstance(part, bytes):
        message.chunk = part
    elif isinstance(part, Head):
        message.head.last_seq = part.last_seq
        message.head.SetInParent()
        for layout in part.tables:
            message.head.tables.add(table=layout.table, columns=layout.columns, types=layout.types)
    elif isinstance(part, SliceStart):
        message.slice.table = part.table
        if part.through_seq is not None:
            message.slice.through_seq = part.through_seq
    elif isinstance(part, SliceEnd):
        message.slice_end.digest.CopyFrom(encode_digest(part.digest))
        if part.through_seq is not None:
            message.slice_end.through_seq = part.through_seq
        if part.through_time is not None:
            set_time(message.slice_end.through_time, part.through_time)
    else:
        message.end.last_seq = part.last_seq
        if part.last_time is not None:
            set_time(message.end.last_time, part.last_time)
    return message


def decode_part(message: pb.ExportShardResponse) -> ExportPart:
    """The part that a message carries; raises `IllegalMove` for one that this release does not know."""
    kind = message.WhichOneof("part")
    if kind == "chunk":
        return message.chunk
    if kind == "head":
        tables = (TableLayout(it.table, tuple(it.columns), tuple(it.types)) for it in message.head.tables)
        return Head(tuple(tables), message.head.last_seq)
    if kind == "slice":
        start = message.slice
        return SliceStart(start.table, start.through_seq if start.HasField("through_seq") else None)
    if kind == "slice_end":
        end = message.slice_end
        through_seq = end.through_seq if end.HasField("through_seq") else None
        through_time = end.through_time if end.HasField("through_time") else None
        return SliceEnd(decode_digest(end.digest), through_seq, _time(through_time))
    if kind == "end":
        return End(message.end.last_seq, _time(message.end.last_time if message.end.HasField("last_time") else None))
    raise IllegalMove("the source sends what this release does not know")


def encode_digest(digest: ShardDigest) -> pb.ShardDigest:
    """A digest as it travels."""
    return pb.ShardDigest(rows=digest.rows, digest=digest.digest)


def decode_digest(message: pb.ShardDigest) -> ShardDigest:
    """A digest that has travelled."""
    return ShardDigest(message.rows, message.digest)


def _time(message: Timestamp | None) -> datetime | None:
    return None if message is None else read_time(message)
