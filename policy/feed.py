"""One ordered feed of what a cluster keeps in etcd: a snapshot, then every change, then a snapshot again where needed.

All sections are watched by one stream below the cluster's root, so whoever has seen store revision N has seen all up to
N; several streams could not promise that. Only the sections are listed: old policy revisions lie below the root too,
and listing them again and again would cost more with each apply.

The sections are listed one after the other, each at its own revision. The watch starts after the oldest of these, and
an event that a section's listing has covered already is left out, so a key never goes back to an older value.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from runtime.etcd import EtcdCompacted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from runtime.etcd import EtcdClient, KeyValue, WatchBatch


class Change(NamedTuple):
    """What a key holds now."""

    key: str
    item: KeyValue | None
    """None when it has been deleted."""


@dataclass(frozen=True, slots=True)
class FeedBatch:
    """Either everything there is in the sections (`is_snapshot`) or what has changed since the batch before."""

    revision: int
    is_snapshot: bool
    changes: tuple[Change, ...]


async def run_feed(
    client: EtcdClient, root: str, sections: Sequence[str], take: Callable[[FeedBatch], Awaitable[None]]
) -> None:
    """Hands batches to `take` for ever; events below `root` but outside the sections come through, too.

    Raises what the client and `take` raise, but for a compaction, which leads to a new snapshot.
    """
    while True:
        covered: dict[str, int] = {}
        changes: list[Change] = []
        for section in sections:
            listing = await client.list(section)
            covered[section] = listing.revision
            changes += [Change(item.key, item) for item in listing.items]
        await take(FeedBatch(max(covered.values()), is_snapshot=True, changes=tuple(changes)))
        try:
            async with aclosing(client.watch(root, start_revision=min(covered.values()) + 1)) as watch:
                async for batch in watch:
                    await take(FeedBatch(batch.revision, is_snapshot=False, changes=_uncovered(batch, covered)))
        except EtcdCompacted:
            continue


def _uncovered(batch: WatchBatch, covered: Mapping[str, int]) -> tuple[Change, ...]:
    def is_covered(key: str, revision: int) -> bool:
        return any(revision <= listed for section, listed in covered.items() if key.startswith(section))

    return tuple(
        Change(event.item.key, event.item if event.kind == "put" else None)
        for event in batch.events
        if not is_covered(event.item.key, event.item.mod_revision)
    )
