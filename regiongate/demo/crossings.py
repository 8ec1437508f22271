"""Reads across borders, each with what the policy says of it: allowed, allowed with columns withheld, denied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.errors import AccessDenied
from regiongate.demo.places import DATASET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.client import Client
    from regiongate.demo.places import Place


@dataclass(frozen=True, slots=True)
class Crossing:
    """A read that enters in one IDC and asks for a row of some RegionCode."""

    entry_idc: str
    region_code: str
    purpose: str
    expected: str
    """allowed | withheld | denied"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it."""

    crossing: Crossing
    outcome: str
    rule: str
    policy_revision: int
    owner_idc: str
    withheld: tuple[str, ...] = ()

    @property
    def is_expected(self) -> bool:
        """Whether the gateway decided as the policy says."""
        return self.outcome == self.crossing.expected


CROSSINGS = (
    Crossing("fra", "DE", "", "allowed"),
    Crossing("sin", "SG", "", "allowed"),
    Crossing("ams", "JP", "research", "allowed"),
    Crossing("fra", "US", "billing", "allowed"),
    Crossing("sin", "DE", "support", "withheld"),
    Crossing("sin", "DE", "statistics", "withheld"),
    Crossing("sin", "FR", "marketing", "denied"),
    Crossing("ams", "SG", "", "denied"),
    Crossing("sin", "CN", "support", "denied"),
    Crossing("sha", "DE", "support", "denied"),
)


def pick_keys(places: Sequence[Place]) -> dict[str, str]:
    """The key of one place for each RegionCode."""
    return {place.region_code: place.key for place in places}


async def try_crossing(client: Client, crossing: Crossing, keys: Mapping[str, str]) -> Answer:
    """Makes one read and says how it was decided, and by which rule."""
    key = keys[crossing.region_code]
    try:
        row = await client.get(DATASET, crossing.region_code, key, purpose=crossing.purpose)
    except AccessDenied as denied:
        return Answer(crossing, "denied", denied.rule, denied.policy_revision, "")
    decision = row.decision
    outcome = "withheld" if decision.withheld else "allowed"
    return Answer(crossing, outcome, decision.rule, decision.policy_revision, decision.owner_idc, decision.withheld)
