"""What a check of a policy document found, and where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding weighs: an error blocks."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found in a document."""

    severity: Severity
    code: str
    """UPPER_SNAKE name of the check."""
    message: str
    path: str = ""
    """Path in the document, such as `residency[1].idcs.fra`."""
    file: str = ""
    line: int = 0
    """From 1; 0 when unknown."""
    column: int = 0

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return (
            f"{where}: {self.severity}: {self.message} [{self.code}]" if where else f"{self.severity}: {self.message}"
        )
