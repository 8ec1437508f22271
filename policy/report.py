"""Findings with their places: what a check says about a path of the document becomes file, line and column.

A path is a tuple of keys and indices, such as `("residency", 1, "idcs", "fra")`. When the document has no such place
(a field is missing), the nearest place around it is named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from policy.findings import Finding, Severity

Path = tuple[str | int, ...]


class Position(NamedTuple):
    """A place in a text; line and column from 1."""

    file: str
    line: int
    column: int


NOWHERE = Position("", 0, 0)


@dataclass(slots=True)
class Positions:
    """Where each part of a document stands."""

    values: dict[Path, Position] = field(default_factory=dict[Path, Position])
    keys: dict[Path, Position] = field(default_factory=dict[Path, Position])
    """Of the keys of mappings."""

    def find(self, path: Path, *, at_key: bool = False) -> Position:
        """Place of the part, or of the nearest part around it."""
        if at_key and path in self.keys:
            return self.keys[path]
        for end in range(len(path), -1, -1):
            if path[:end] in self.values:
                return self.values[path[:end]]
        return NOWHERE


def format_path(path: Path) -> str:
    """The path as a person writes it, such as `residency[1].idcs.fra`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


@dataclass(slots=True)
class Report:
    """Collects the findings of all checks."""

    positions: Positions = field(default_factory=Positions)
    findings: list[Finding] = field(default_factory=list[Finding])

    def error(self, code: str, message: str, path: Path, *, at_key: bool = False) -> None:
        """Something that blocks the document."""
        self._add(Severity.ERROR, code, message, path, at_key)

    def warn(self, code: str, message: str, path: Path, *, at_key: bool = False) -> None:
        """Something that is lawful but hardly meant."""
        self._add(Severity.WARNING, code, message, path, at_key)

    def inform(self, code: str, message: str, path: Path, *, at_key: bool = False) -> None:
        """Something worth knowing."""
        self._add(Severity.INFO, code, message, path, at_key)

    @property
    def has_errors(self) -> bool:
        """Whether anything blocks."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    def in_order(self) -> tuple[Finding, ...]:
        """All findings: the gravest first, then as they stand in the text."""
        weights = list(Severity)
        return tuple(sorted(self.findings, key=lambda f: (weights.index(f.severity), f.file, f.line, f.column)))

    def _add(self, severity: Severity, code: str, message: str, path: Path, at_key: bool) -> None:
        place = self.positions.find(path, at_key=at_key)
        self.findings.append(Finding(severity, code, message, format_path(path), *place))
