"""ListAuditEntries: the audit trail as it is in the policy store, page by page.

Nothing is checked on this side: whoever reads the trail checks it, and needs to believe no gateway's word for it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.timestamp_pb2 import Timestamp

from policy.audit.entry import AuditEntry, canonical, time_text
from policy.audit.facts import revision_hash
from policy.errors import InvalidInput
from policy.records import PolicyRevision
from policy.store import told_as_ours
from regiongate.v1 import policy_service_pb2 as pb

if TYPE_CHECKING:
    from policy.audit.chain import AuditChain


async def list_entries(
    chain: AuditChain, request: pb.ListAuditEntriesRequest, token: int, size: int
) -> pb.ListAuditEntriesResponse:
    """One page; `next_page_token` is left to the caller, who makes all tokens of its service.

    Args:
        chain: The trail.
        request: What was asked for.
        token: The number in the page token; 0 without one.
        size: Most entries of a page.
    """
    if request.first_number < 0:
        raise InvalidInput("an entry's number is not negative", field_name="first_number")
    with told_as_ours():
        page = await chain.read(token or request.first_number or 1, size)
    return pb.ListAuditEntriesResponse(
        entries=map(to_entry_message, page.entries),
        next_page_token=str(page.next_number) if page.next_number else "",
        head_number=page.head.number,
        head_hash=page.head.hash,
    )


def to_entry_message(entry: AuditEntry) -> pb.AuditEntry:
    """The entry as it travels."""
    time = None
    if entry.time:
        time = Timestamp()
        time.FromDatetime(datetime.fromisoformat(entry.time))
    return pb.AuditEntry(
        number=entry.number,
        time=time,
        kind=entry.kind,
        content=canonical(entry.content),
        previous_hash=entry.previous_hash,
        hash=entry.hash,
    )


def from_entry_message(message: pb.AuditEntry) -> AuditEntry:
    """The entry that a gateway has sent; one that cannot be read gives one whose hash is wrong."""
    try:
        content = cast("dict[str, Any]", json.loads(message.content))
        time = time_text(message.time.ToDatetime(UTC)) if message.HasField("time") else ""
    except (ValueError, OverflowError):
        content, time = {}, ""
    return AuditEntry(message.number, time, message.kind, content, message.previous_hash, message.hash)


def hash_of_revision(message: pb.PolicyRevision) -> str:
    """What the trail must say of a revision that `GetPolicy` has answered."""
    record = PolicyRevision(
        revision=message.revision,
        parent=message.parent,
        document=message.document,
        author=message.author,
        message=message.message,
        create_time=message.create_time.ToDatetime(UTC).isoformat() if message.HasField("create_time") else "",
        rollout=message.rollout,
    )
    return revision_hash(record, message.rules_hash)
