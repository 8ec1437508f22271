"""A unified diff of two policy documents, bounded in its size and in the work that it takes."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_BYTES: Final = 64 << 10
_MAX_PAIRS: Final = 4_000_000
"""Lines compared with lines, at most; above it everything between the first and the last difference counts as new."""
_CONTEXT: Final = 3


def bounded_diff(before: str, after: str, before_name: str, after_name: str) -> tuple[str, bool]:
    """The diff, and whether it was cut: at a line, so that it has at most `MAX_BYTES` of UTF-8."""
    lines: list[str] = []
    size = 0
    for line in _diff(before.splitlines(), after.splitlines(), before_name, after_name):
        size += len(line.encode()) + 1
        if size > MAX_BYTES:
            return "\n".join(lines), True
        lines.append(line)
    return "\n".join(lines), False


def _diff(before: Sequence[str], after: Sequence[str], before_name: str, after_name: str) -> Iterator[str]:
    start = 0
    shorter = min(len(before), len(after))
    while start < shorter and before[start] == after[start]:
        start += 1
    end = 0
    while end < shorter - start and before[-1 - end] == after[-1 - end]:
        end += 1
    old, new = len(before) - start - end, len(after) - start - end
    if old * new <= _MAX_PAIRS:
        return difflib.unified_diff(before, after, before_name, after_name, lineterm="", n=_CONTEXT)
    return _replaced(before[start : start + old], after[start : start + new], start, before_name, after_name)


def _replaced(old: Sequence[str], new: Sequence[str], start: int, before_name: str, after_name: str) -> Iterator[str]:
    """One hunk without context: all of this went, all of that came."""
    yield f"--- {before_name}"
    yield f"+++ {after_name}"
    yield f"@@ -{start + 1},{len(old)} +{start + 1},{len(new)} @@"
    yield from (f"-{line}" for line in old)
    yield from (f"+{line}" for line in new)
