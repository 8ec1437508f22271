"""The policy revisions as a trail records them, to be compared with those that the policy store has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from policy.audit.entry import ChainBroken

if TYPE_CHECKING:
    from policy.audit.entry import AuditEntry


class RecordedRevisions:
    """What the policy entries of a sound trail say."""

    def __init__(self) -> None:
        self._entries: dict[int, AuditEntry] = {}

    def take(self, entry: AuditEntry) -> None:
        """Takes note of an entry of any kind; raises `ChainBroken` when it records a revision for a second time."""
        if entry.kind != "policy":
            return
        revision = cast("Any", entry.content.get("revision"))
        if not isinstance(revision, int) or revision in self._entries:
            raise ChainBroken(entry.number, "records no policy revision, or one that was recorded before")
        self._entries[revision] = entry

    @property
    def numbers(self) -> list[int]:
        """The revisions, oldest first."""
        return sorted(self._entries)

    def check(self, revision: int, found_hash: str) -> None:
        """Compares a revision with its record; an empty hash: it cannot be read any more."""
        entry = self._entries[revision]
        if not found_hash:
            raise ChainBroken(entry.number, f"records policy revision {revision}, which cannot be read any more")
        if entry.content.get("revision_hash") != found_hash:
            raise ChainBroken(entry.number, f"records policy revision {revision}, which was changed since")

    def check_complete(self, first: int, current_before: int, current_after: int) -> None:
        """Checks that each revision has its entry.

        Args:
            first: The first revision that must be recorded.
            current_before: The current revision before the trail was read; 0 when there was none.
            current_after: The same after it was read.
        """
        missing = [revision for revision in range(first, current_before + 1) if revision not in self._entries]
        if missing:
            later = [entry.number for revision, entry in self._entries.items() if revision > missing[0]]
            place = min(later) if later else 1 + max((entry.number for entry in self._entries.values()), default=0)
            raise ChainBroken(place, f"policy revision {missing[0]} is current or was, and no entry up to here says so")
        newest = max(self._entries, default=0)
        if newest > current_after:
            number = self._entries[newest].number
            raise ChainBroken(number, f"records policy revision {newest}, but {current_after} is taken for the newest")
