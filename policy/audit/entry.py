"""One link of the audit trail, the canonical form that its hash is taken of, and the check of a whole chain.

The hash is SHA-256 over all other fields as canonical JSON: keys sorted, no spaces, UTF-8, whole numbers without a
fraction. One of these fields is the hash of the entry before; so a link that is known to be genuine proves every link
up to it, and the newest hash stands for the whole trail.

Nothing in here is trusted: what is read back must be, byte for byte, what would be written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self, cast

from policy.records import Record

GENESIS: Final = "0" * 64
"""What the first entry names as the hash before it."""
Kind = Literal["policy", "rollout", "move", "drain", "crossings", "job"]


class ChainBroken(Exception):
    """The trail is not as it was written: at this entry, and so."""

    def __init__(self, number: int, problem: str) -> None:
        super().__init__(f"entry {number}: {problem}")
        self.number = number
        self.problem = problem


def canonical(value: object) -> str:
    """The one way to write a value as JSON; raises `ValueError` for what JSON cannot hold."""
    plain = _plain(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of the canonical form, in lower-case hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def time_text(time: datetime) -> str:
    """A time in the one form that entries have: UTC, with six digits of a second."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value)
        if not all(isinstance(name, str) for name in items):
            raise ValueError("names in an audit entry are strings")
        return {name: _plain(item) for name, item in items.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[object]", value)]
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)  # 12.0 comes back as 12 from other languages
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ValueError(f"an audit entry cannot hold a {type(value).__name__}")


@dataclass(eq=False, slots=True)
class Fact:
    """Something that happened, to be appended; the same object again when it is tried again."""

    kind: Kind
    content: Mapping[str, Any]
    time: str = field(default_factory=lambda: time_text(datetime.now(UTC)))
    tried: AuditEntry | None = None
    """What was sent and not answered: it may be in the chain, or come to be."""

    @property
    def is_settled(self) -> bool:
        """Whether every try is known to have come to nothing, or to an entry."""
        return self.tried is None


@dataclass(frozen=True, slots=True)
class AuditHead(Record):
    """`audit/head`: number and hash of the newest entry."""

    number: int = 0
    hash: str = GENESIS


@dataclass(frozen=True, slots=True)
class AuditEntry(Record):
    """`audit/entries/<n>`: one link."""

    number: int
    """From 1, without a gap."""
    time: str
    """By the clock of the process that appended it."""
    kind: str
    content: Mapping[str, Any]
    previous_hash: str
    hash: str = ""

    @classmethod
    def after(cls, head: AuditHead, fact: Fact) -> Self:
        """The entry of a fact that follows a head."""
        content = cast("dict[str, Any]", json.loads(canonical(fact.content)))
        unsealed = cls(head.number + 1, fact.time, fact.kind, content, head.hash)
        return cls(unsealed.number, fact.time, fact.kind, content, head.hash, unsealed.computed_hash())

    @property
    def head(self) -> AuditHead:
        """What `audit/head` is when this is the newest entry."""
        return AuditHead(self.number, self.hash)

    def computed_hash(self) -> str:
        """What its hash must be."""
        fields = self.fields()
        del fields["hash"]
        return digest(fields)

    def fields(self) -> dict[str, Any]:
        """All fields as plain data."""
        return {
            "number": self.number,
            "time": self.time,
            "kind": self.kind,
            "content": self.content,
            "previous_hash": self.previous_hash,
            "hash": self.hash,
        }

    def encode(self) -> bytes:
        """The entry in canonical form."""
        return canonical(self.fields()).encode()

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Reads an entry; raises `ValueError` for anything that `encode` would not have written."""
        try:
            entry = cls(**cast("dict[str, Any]", json.loads(value)))
            is_canonical = entry.encode() == value and entry.time == time_text(datetime.fromisoformat(entry.time))
        except (TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError("not an AuditEntry") from error
        if not is_canonical:
            raise ValueError("not an AuditEntry in canonical form")
        return entry


class ChainCheck:
    """Follows a trail from its first entry, and raises `ChainBroken` at the first one that is wrong."""

    def __init__(self, anchors: Mapping[int, str] | None = None) -> None:
        """Expects the first entry.

        Args:
            anchors: Hashes by number that were noted elsewhere, earlier.
        """
        self.head = AuditHead()
        """Of what has been taken."""
        self._anchors = dict(anchors or {})

    def take(self, entry: AuditEntry) -> None:
        """Checks the next entry."""
        number = self.head.number + 1
        if entry.number != number:
            raise ChainBroken(number, f"missing: entry {entry.number} stands in its place")
        if entry.computed_hash() != entry.hash:
            raise ChainBroken(number, "was changed: its hash is not that of its fields")
        if entry.previous_hash != self.head.hash:
            raise ChainBroken(number, "does not follow the entry before it: one of the two was rewritten")
        if self._anchors.get(number, entry.hash) != entry.hash:
            raise ChainBroken(number, "is not the one that was noted: it, or one before it, was rewritten")
        self.head = entry.head

    def end(self, head: AuditHead | None) -> None:
        """Checks that nothing follows: by the head as it is kept, if it is known, and by the anchors."""
        last = self.head.number
        if head is not None and head.number > last:
            raise ChainBroken(last + 1, f"missing: the trail ends, and its head names entry {head.number}")
        if head is not None and head.number < last:
            raise ChainBroken(head.number + 1, "is above what the head names as the newest")
        if head is not None and head.hash != self.head.hash:
            raise ChainBroken(last, "is not the one that the head names")
        beyond = [number for number in self._anchors if number > last]
        if beyond:
            raise ChainBroken(last + 1, f"missing: the trail ends, and entry {max(beyond)} was noted")
