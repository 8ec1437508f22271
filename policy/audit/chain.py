"""Appends to the audit trail in etcd, together with what is recorded or alone, however many others append.

An entry is put by a transaction that compares the head: of two writers at one head one wins, and the other one links
its entry to the new head and tries again. So there is no gap and no fork. Entries are never deleted or replaced; so
when an answer is lost, the key that the entry would have tells for good whether it was appended, once it exists.

Errors are those of the etcd client, and `TrailDamaged`.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from policy.audit.entry import AuditEntry, AuditHead
from runtime.etcd import (
    EtcdError,
    EtcdUnavailable,
    TxnResult,
    compare_create_revision,
    compare_mod_revision,
    get_op,
    put_op,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.audit.entry import Fact
    from policy.records import Keys
    from runtime.etcd import Compare, EtcdClient, KeyValue, Op

MAX_TRIES: Final = 100
"""How often the head may move under one append; each time somebody else has appended."""
_READ_AT_ONCE: Final = 32
_PAGE_BYTES: Final = 1 << 20
_LONGEST_PAUSE: Final = 0.05


class TrailDamaged(EtcdError):
    """The head and the entries contradict each other: somebody has changed them by hand."""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry, as it was when it was read."""

    newest: AuditHead
    mod_revision: int
    """Of `audit/head`; 0 while there is no entry."""


class Link(NamedTuple):
    """What a transaction takes in to append entries."""

    compares: tuple[Compare, ...]
    puts: tuple[Op, ...]
    entries: tuple[AuditEntry, ...]


class Page(NamedTuple):
    """A part of the trail, as it is: nothing about it has been checked."""

    entries: list[AuditEntry]
    """What cannot be read as an entry has its number only."""
    head: AuditHead
    next_number: int
    """Where the next page begins; 0 after the last one."""


class AuditChain:
    """The trail of one cluster."""

    def __init__(self, client: EtcdClient, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def next(self) -> Head:
        """What the next entry follows."""
        return _head(await self._client.get(self._keys.audit_head))

    def link(self, head: Head, *facts: Fact) -> Link:
        """The compares and puts that append facts behind a head; they fail when it has moved."""
        entries: list[AuditEntry] = []
        newest = head.newest
        for fact in facts:
            entries.append(AuditEntry.after(newest, fact))
            newest = entries[-1].head
        keys = [self._keys.audit_entry(entry.number) for entry in entries]
        return Link(
            (
                *(compare_create_revision(key, 0) for key in keys),
                compare_mod_revision(self._keys.audit_head, head.mod_revision),
            ),
            (
                *(put_op(key, entry.encode()) for key, entry in zip(keys, entries, strict=True)),
                put_op(self._keys.audit_head, newest.encode()),
            ),
            tuple(entries),
        )

    async def transact(
        self, compares: Sequence[Compare], puts: Sequence[Op], *facts: Fact, failure: Sequence[Op] = ()
    ) -> TxnResult:
        """Runs a transaction that appends the facts, too; again with the new head for as long as only that has moved.

        Args:
            compares: The caller's own; the result says that one of them failed.
            puts: The caller's own; writes only.
            facts: At least one; given again after an error, they are not appended twice.
            failure: Reads for when a compare of the caller fails.

        Raises:
            EtcdUnavailable: with `may_have_applied` when that is not known; call again with the same facts to learn it.
        """
        first = facts[0]
        for tries in range(MAX_TRIES):
            head = await self.next()
            if (applied := await self._settled(first)) is not None:
                return applied
            link = self.link(head, *facts)
            first.tried = link.entries[0]
            # The caller's compares come first: a repeat asks the first key that is written what became of it.
            request = ([*compares, *link.compares], [*puts, *link.puts], [*failure, *self._reads(link)])
            try:
                result = await self._client.transact(*request)
            except EtcdUnavailable:
                with suppress(EtcdUnavailable):
                    applied = await self._settled(first)
                if applied is not None:
                    return applied
                if not first.is_settled:
                    raise
            else:
                if result.succeeded or (result := self._judge(head, link, result)) is not None:
                    first.tried = None
                    return result
                first.tried = None
            await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.002 * tries)))  # noqa: S311 (no secret)
        raise EtcdUnavailable("others append to the audit trail without a pause", may_have_applied=False)

    async def append(self, fact: Fact) -> None:
        """Appends one fact by itself; after an error, call again with the same object."""
        await self.transact((), (), fact)

    async def read(self, first: int, limit: int) -> Page:
        """Up to `limit` entries from one on, in order, and the head; fewer when they are large.

        Looks beyond the head, too: what stands there is no part of the trail, and is shown for that reason.
        """
        entries: list[AuditEntry] = []
        size, number = 0, first
        while True:
            numbers = range(number, number + min(_READ_AT_ONCE, limit - len(entries)))
            keys = [self._keys.audit_entry(number) for number in numbers]
            result = await self._client.transact([], [get_op(self._keys.audit_head), *map(get_op, keys)])
            newest, *items = result.results
            head = _read_head(newest)
            found = [_read_entry(key, item.value) for key, item in zip(numbers, items, strict=True) if item is not None]
            entries += found
            size += sum(len(item.value) for item in items if item is not None)
            number = numbers.stop
            # A gap in the trail this wide ends it here, whatever the head claims: it may claim anything.
            has_more = bool(found)
            if not has_more or len(entries) >= limit or size >= _PAGE_BYTES:
                return Page(entries, head, number if has_more else 0)

    def _reads(self, link: Link) -> tuple[Op, Op]:
        return get_op(self._keys.audit_head), get_op(self._keys.audit_entry(link.entries[0].number))

    @staticmethod
    def _judge(head: Head, link: Link, failed: TxnResult) -> TxnResult | None:
        """What a transaction that failed means; None: link anew, since the head has moved."""
        *answers, newest, entry = failed.results
        if entry is not None and entry.value == link.entries[0].encode():
            return TxnResult(True, entry.mod_revision, ())  # an earlier copy of the request came late
        if _head(newest) != head:
            return None
        if entry is not None:
            raise TrailDamaged("the audit trail has entries above its head: `regiongate audit verify` tells more")
        return TxnResult(False, failed.revision, tuple(answers))

    async def _settled(self, fact: Fact) -> TxnResult | None:
        """The result of an earlier try that was not answered, if it was applied.

        `fact.tried` stays while that is not known: nothing is in its place, so the same entry is sent there again.
        """
        tried = fact.tried
        if tried is None:
            return None
        found = await self._client.get(self._keys.audit_entry(tried.number))
        if found is None:
            return None
        fact.tried = None
        return TxnResult(True, found.mod_revision, ()) if found.value == tried.encode() else None


def _read_entry(number: int, value: bytes) -> AuditEntry:
    try:
        return AuditEntry.decode(value)
    except ValueError:
        return AuditEntry(number, "", "", {}, "")


def _read_head(item: KeyValue | None) -> AuditHead:
    try:
        return AuditHead.decode(item.value) if item else AuditHead()
    except ValueError:
        return AuditHead(0, "")


def _head(item: KeyValue | None) -> Head:
    try:
        return Head(AuditHead.decode(item.value), item.mod_revision) if item else Head(AuditHead(), 0)
    except ValueError as error:
        raise TrailDamaged("the head of the audit trail cannot be read") from error
