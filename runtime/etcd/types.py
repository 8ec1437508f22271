"""Immutable values that go in and out of the client: keys are text, values are bytes, revisions are etcd's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr

from runtime.etcd.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

MAX_OPERATIONS = 128
"""etcd's own limit on compares, and on operations in each branch, of a transaction."""


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """How to reach a cluster, and how patient to be."""

    endpoints: tuple[str, ...]
    """`host:port`, `http://host:port` or `https://host:port`; the first is preferred, the others are for failover."""

    ca_file: Path | None = None
    """Speaks TLS to endpoints without a scheme, too."""

    cert_file: Path | None = None
    key_file: Path | None = None
    username: str = ""
    password: SecretStr | str = field(default="", repr=False)

    attempt_timeout: timedelta = timedelta(seconds=2)
    """How long one member may take. Short on purpose: a write in flight when the leader dies is never answered."""

    request_timeout: timedelta = timedelta(seconds=10)
    """How long one call may take with all its attempts."""

    watch_check_every: timedelta = timedelta(seconds=2)
    """A watch that is silent for this long asks the member for a sign of life, and waits as long again for it."""

    max_message_bytes: int = 64 << 20
    """Largest answer that is accepted; a listing that exceeds it is fetched in smaller pages."""

    @property
    def plain_password(self) -> str:
        """The password in clear."""
        return self.password.get_secret_value() if isinstance(self.password, SecretStr) else self.password


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it is, or was, at `mod_revision`."""

    key: str
    value: bytes = field(repr=False)
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything under a prefix at one revision, in key order."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key; the item of a delete has the key and the revision only."""

    kind: Literal["put", "delete"]
    item: KeyValue
    previous: KeyValue | None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Changes in revision order, complete up to and including `revision`: a revision is never split over batches."""

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class FollowBatch:
    """Either the whole state at `revision` (`items`), or the changes that lead to `revision` (`events`)."""

    revision: int
    is_snapshot: bool
    items: tuple[KeyValue, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What one member says of itself."""

    version: str
    member_id: int
    leader: int
    """Member id of the leader; 0 when there is none."""

    raft_term: int
    database_bytes: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """Holds when the key's revision of this kind equals `revision`; 0 means that the key does not exist."""

    key: str
    kind: Literal["create", "mod"]
    revision: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a transaction."""

    kind: Literal["put", "delete", "get"]
    key: str
    value: bytes = field(default=b"", repr=False)
    lease: int = 0


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which branch ran, at which revision; `results` has an item (or None) for each get, and None for the others."""

    succeeded: bool
    revision: int
    results: tuple[KeyValue | None, ...]


def compare_mod_revision(key: str, revision: int) -> Compare:
    """The key has not changed since `revision`; 0: it does not exist."""
    return Compare(key, "mod", revision)


def compare_create_revision(key: str, revision: int) -> Compare:
    """The key is still the one that was created at `revision`; 0: it does not exist."""
    return Compare(key, "create", revision)


def put_op(key: str, value: bytes, *, lease: int = 0) -> Op:
    """Writes a key, bound to a lease if one is given."""
    return Op("put", key, value, lease)


def delete_op(key: str) -> Op:
    """Deletes a key, if it is there."""
    return Op("delete", key)


def get_op(key: str) -> Op:
    """Reads a key inside the transaction."""
    return Op("get", key)


def range_end(prefix: str) -> bytes:
    """The first key after all keys with this prefix; NUL, etcd's word for "to the end", if there is none."""
    raw = prefix.encode().rstrip(b"\xff")
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else b"\0"


def item_of(message: pb.KeyValue) -> KeyValue:
    """Reads a key from the wire."""
    return KeyValue(
        message.key.decode(),
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def event_of(message: pb.Event) -> Event:
    """Reads an event from the wire."""
    kind: Literal["put", "delete"] = "put" if message.type == pb.Event.PUT else "delete"
    previous = item_of(message.prev_kv) if message.HasField("prev_kv") else None
    return Event(kind, item_of(message.kv), previous)
