"""Why a stack cannot start: each error says what is wrong and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class StackError(Exception):
    """The stack cannot start or go on."""

    reason: str
    """UPPER_SNAKE."""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return self.message
