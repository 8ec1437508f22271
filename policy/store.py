"""The policy store: revisions, assignments and rollouts of one cluster in etcd; each change is one guarded transaction.

A revision is stored only while its parent is still current, so of two admins who started from the same revision one
wins and the other is told both numbers. Revisions are never changed or deleted: any decision that names one can be
explained later (law L7), and each has its entry in the audit trail. Errors of etcd come out as errors of
`policy.errors`.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.audit.chain import AuditChain
from policy.audit.facts import policy_fact
from policy.errors import LimitReached, NoPolicy, RevisionConflict, RevisionNotFound, StoreUnavailable
from policy.records import CurrentPolicy, PolicyRevision, RolloutRecord, ShardRecord
from runtime.etcd import (
    EtcdError,
    EtcdTooLarge,
    EtcdUnavailable,
    compare_create_revision,
    compare_mod_revision,
    get_op,
    put_op,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from policy.records import Keys
    from runtime.etcd import Compare, EtcdClient, Op

MAX_STORED_BYTES = 1_400_000
"""etcd takes 1.5 MiB a request, unless it was told otherwise."""
READ_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Base:
    """What a change starts from."""

    current: PolicyRevision | None
    mod_revision: int
    """Of `policy/current`; 0 while there is none."""

    @property
    def revision(self) -> int:
        """Number of the current revision; 0 when there is none."""
        return self.current.revision if self.current else 0


class GuardFailed(Exception):
    """The policy is still the one that was planned from, but something else that the plan rests on has changed."""


@contextmanager
def told_as_ours() -> Generator[None]:
    """Turns errors of the etcd client into those that callers know."""
    try:
        yield
    except EtcdTooLarge as error:
        raise LimitReached("the policy store does not take so much at once", limit="stored bytes") from error
    except EtcdUnavailable as error:
        may = "; whether it was changed is not known" if error.may_have_applied else ""
        raise StoreUnavailable(f"the policy store does not answer{may}") from error
    except EtcdError as error:
        raise StoreUnavailable(f"the policy store refuses: {type(error).__name__}") from error


class PolicyStore:
    """Reads and changes the policy of one cluster."""

    def __init__(self, client: EtcdClient, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.audit = AuditChain(client, keys)

    async def base(self) -> Base:
        """The current revision, as it is now."""
        with told_as_ours():
            item = await self.client.get(self.keys.policy_current)
        if item is None:
            return Base(None, 0)
        return Base(await self.revision(CurrentPolicy.decode(item.value).revision), item.mod_revision)

    async def revision(self, number: int = 0) -> PolicyRevision:
        """One revision, the current one for 0.

        Raises:
            NoPolicy: nothing has been applied yet.
            RevisionNotFound: there is no such revision.
        """
        if not number:
            current = (await self.base()).current
            if current is None:
                raise NoPolicy("no policy has been applied yet")
            return current
        with told_as_ours():
            item = await self.client.get(self.keys.policy_revision(number))
        if item is None:
            raise RevisionNotFound(f"there is no policy revision {number}")
        return PolicyRevision.decode(item.value)

    async def newest_revision(self) -> int:
        """Number of the current revision; 0 when there is none."""
        with told_as_ours():
            item = await self.client.get(self.keys.policy_current)
        return CurrentPolicy.decode(item.value).revision if item else 0

    async def revisions(self, newest: int, number: int) -> list[PolicyRevision]:
        """Up to `number` revisions from `newest` downwards."""
        found: list[PolicyRevision] = []
        wanted = range(newest, max(0, newest - number), -1)
        for start in range(0, len(wanted), READ_AT_ONCE):
            found += await asyncio.gather(*map(self.revision, wanted[start : start + READ_AT_ONCE]))
        return found

    async def owners(self) -> dict[tuple[str, int], str]:
        """Owner of each shard that is assigned."""
        with told_as_ours():
            listing = await self.client.list(self.keys.shards)
        return {self.keys.parse_shard(item.key): ShardRecord.decode(item.value).owner for item in listing.items}

    async def rollout(self, rollout: str) -> RolloutRecord:
        """One rollout; raises `RevisionNotFound`."""
        with told_as_ours():
            item = await self.client.get(self.keys.rollout(rollout))
        if item is None:
            raise RevisionNotFound("there is no such rollout")
        return RolloutRecord.decode(item.value)

    async def rollouts(self) -> list[RolloutRecord]:
        """Every rollout, newest first."""
        with told_as_ours():
            listing = await self.client.list(self.keys.rollouts)
        return [RolloutRecord.decode(item.value) for item in reversed(listing.items)]

    async def commit(
        self,
        base: Base,
        record: PolicyRevision,
        rollout: RolloutRecord | None,
        *,
        compares: Sequence[Compare] = (),
        puts: Sequence[Op] = (),
    ) -> int:
        """Makes the record the current revision, and returns the store's revision at which it became so.

        The entry of the audit trail is part of the same transaction: no law without a trace, no trace without a law.

        Args:
            base: What the record was made from.
            record: The revision.
            rollout: What it sets in motion, if anything.
            compares: What else must still hold.
            puts: What else becomes so together with the record.

        Raises:
            RevisionConflict: another revision became current after `base` was read.
            GuardFailed: one of `compares` does not hold.
            StoreUnavailable: etcd did not answer; the record may have been stored or not.
            LimitReached: the document is too large.
        """
        key, value = self.keys.policy_revision(record.revision), record.encode()
        if len(value) > MAX_STORED_BYTES:
            raise LimitReached("the policy document is too large for the policy store", limit="stored bytes")
        fact = await asyncio.to_thread(policy_fact, record, base.current)
        # The revision's key comes first: by its value, which is nobody else's, a repeat after a lost answer finds out
        # whether the first attempt was applied.
        guards = [compare_create_revision(key, 0), compare_mod_revision(self.keys.policy_current, base.mod_revision)]
        changes = [put_op(key, value), put_op(self.keys.policy_current, CurrentPolicy(record.revision).encode())]
        if rollout is not None:
            changes.append(put_op(self.keys.rollout(rollout.rollout), rollout.encode()))
        with told_as_ours():
            result = await self.audit.transact(
                [*guards, *compares], [*changes, *puts], fact, failure=[get_op(self.keys.policy_current)]
            )
        if result.succeeded:
            return result.revision
        item = result.results[0]
        if compares and (item.mod_revision if item else 0) == base.mod_revision:
            raise GuardFailed(f"policy revision {base.revision} is still current, but something else has changed")
        raise conflict(base.revision, CurrentPolicy.decode(item.value).revision if item else 0)


def conflict(parent: int, current: int) -> RevisionConflict:
    """The error for who comes second."""
    return RevisionConflict(
        f"policy revision {current} is current, not {parent}: read it and decide again", parent=parent, current=current
    )
