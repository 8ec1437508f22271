"""How lists of names are put into sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SHOWN: Final = 5
"""Names that a sentence spells out before it counts."""


def join(words: Iterable[str], conjunction: str = "and") -> str:
    """The words in order, as a person lists them."""
    *front, last = sorted(words)
    return f"{', '.join(front)} {conjunction} {last}" if front else last


def shorten(words: Iterable[str]) -> str:
    """The first words in order, the others counted."""
    listed = sorted(words)
    if len(listed) <= SHOWN + 1:
        return join(listed)
    return f"{', '.join(listed[:SHOWN])} and {len(listed) - SHOWN} more"
