"""What the demo's steps know of each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from policy.compile import Policy
    from regiongate.demo.places import Place
    from runtime.stack_file import StackFile


NEW_IDC = "lon"
"""Where the rows go whose country gets a law of its own."""
ENTRY_IDC = "fra"
"""Whose gateway takes the demo's orders."""


@dataclass(slots=True)
class Demo:
    """One run."""

    data_dir: Path
    stack: StackFile
    policy: Policy
    """The one in force."""
    new_policy: Policy
    """The one that it becomes when the law changes."""
    places: list[Place]
    facts: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    rollout_trace: str = ""
    """Id of the trace that the change of law has begun."""
    put_back: int = 0
    """Places that clients had written over, and that are as in the data file again."""

    def entry(self, idc: str) -> str:
        """Address of the IDC's gateway."""
        return self.stack.idcs[idc].gateway

    @property
    def databases(self) -> dict[str, str]:
        """IDC -> URL of its database."""
        return {idc: entry.database for idc, entry in self.stack.idcs.items()}
