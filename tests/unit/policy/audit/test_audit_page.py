"""docs/audit.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import gateway.crossings
from policy.audit.entry import GENESIS, Kind

PAGE = (Path(__file__).parents[4] / "docs/audit.md").read_text(encoding="utf-8")


def test_the_page_lists_every_kind_of_entry_and_every_outcome():
    first_cells = set(re.findall(r"^\| `([a-z ]+)` \|", PAGE, re.MULTILINE))
    outcomes = {gateway.crossings.PERMITTED, gateway.crossings.REFUSED, gateway.crossings.LAW_UNKNOWN}
    assert first_cells == {*get_args(Kind), *outcomes}


def test_the_numbers_of_the_page_are_those_of_the_code():
    assert f"After {gateway.crossings.MAX_COUNTERS:,} different counters" in PAGE
    assert f"{len(GENESIS)} zeros" in PAGE
