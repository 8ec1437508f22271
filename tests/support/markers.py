"""Seeded markers in everything that a caller sends, and the search for them in everything that a stack puts out.

A marker says which RegionCode's law it is under, or `NOWHERE` when nothing may keep it. The search knows a marker in
plain text, in base64 at any alignment (page tokens), in hexadecimal, and a number in decimal and in both byte orders.
"""

from __future__ import annotations

import base64
import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOWHERE = "NOWHERE"
_ZEROS = bytes(4096)


class Found(NamedTuple):
    """A marker where it was found."""

    place: str
    region_code: str
    text: str


class Markers:
    """All markers of one test."""

    def __init__(self, seed: int) -> None:
        self._stem = f"zq{seed:010d}qz"
        self._count = itertools.count(1)
        stem = self._stem.encode()
        encoded = [base64.b64encode(b"\0" * shift + stem)[4:-4] for shift in range(3)]
        self._disguises = (*encoded, stem.hex().encode(), stem.hex().upper().encode())
        self._numbers: dict[int, str] = {}
        # What numbers share: six bytes and fourteen digits.
        self._base = (5_000_000_000 + seed) * 1_000_000_000 >> 16 << 16
        upper = self._base.to_bytes(8, "big")[:6]
        self._number_parts = (upper, upper[::-1], str(self._base)[:14].encode())

    def text(self, region_code: str = NOWHERE) -> str:
        """A new marker."""
        return f"{self._stem}-{region_code}-{next(self._count)}"

    def number(self, region_code: str = NOWHERE) -> int:
        """A new marker that is an int64; its upper bytes and its first digits appear nowhere by chance."""
        number = self._base + next(self._count)
        self._numbers[number] = region_code
        return number

    def find(self, content: bytes, place: str) -> Iterator[Found]:
        """Every marker in some bytes."""
        if self._stem.encode() in content:
            for match in re.finditer(re.escape(self._stem).encode() + rb"-([A-Z]+)-\d+", content):
                yield Found(place, match[1].decode(), match[0].decode())
        for disguise in self._disguises:
            if disguise in content:
                yield Found(place, NOWHERE, f"{self._stem} in disguise")
        if any(part in content for part in self._number_parts):
            for number, region_code in self._numbers.items():
                forms = (str(number).encode(), number.to_bytes(8, "big"), number.to_bytes(8, "little"))
                if any(form in content for form in forms):
                    yield Found(place, region_code, str(number))

    def find_in_files(self, folder: Path) -> Iterator[Found]:
        """Every marker in every file below a folder, and in the files' names."""
        for path in sorted(folder.rglob("*")):
            place = str(path.relative_to(folder))
            yield from self.find(place.encode(), place)
            if path.is_file() and not path.is_symlink():
                try:
                    content = path.read_bytes()
                except FileNotFoundError:
                    continue  # a live server removes files while we look
                # Servers lay files out in advance: most of what is there are zeros.
                yield from self.find(content.replace(_ZEROS, b""), place)
