"""What the demo's job should have counted, what it has, and whether these are the same to the unit.

The proof trusts no answer of regiongate: it adds up the data file by itself, and reads every database directly.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from regiongate.demo.places_job import figures, seen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from policy.compile import Policy
    from regiongate.demo.places import Place

TIMEOUT_SECONDS = 30

# A shard whose places have all been deleted has no largest one.
_FIGURES = f"""
SELECT region_code, places, population, coalesce(largest, -1), coalesce(largest_key, '') FROM {figures.name}
"""  # noqa: S608 (a constant)
_CODES = f"SELECT region_code FROM {figures.name} UNION SELECT region_code FROM {seen.name}"  # noqa: S608 (constants)


class Figures(NamedTuple):
    """Of a country, or of some of its shards."""

    places: int = 0
    population: int = 0
    largest: int = -1
    """Population of the largest place."""
    largest_key: str = ""

    def plus(self, other: Figures) -> Figures:
        """Of both together; of two places of one size the first by key is the largest."""
        largest = min((self, other), key=lambda it: (-it.largest, it.largest_key))
        return Figures(
            self.places + other.places, self.population + other.population, largest.largest, largest.largest_key
        )


class Counted(NamedTuple):
    """What one database holds of the job."""

    by_region: Mapping[str, Figures]
    codes: frozenset[str]
    """Every RegionCode that any of the job's tables has a row of."""


def expected_figures(places: Iterable[Place]) -> dict[str, Figures]:
    """RegionCode -> what the data file says."""
    populations = ((place.region_code, place.key, place.values["population"]) for place in places)
    return _added((code, Figures(1, size, size, key)) for code, key, size in populations if isinstance(size, int))


def over_all(counted: Mapping[str, Counted]) -> dict[str, Figures]:
    """RegionCode -> what was counted in all IDCs together."""
    return _added(pair for it in counted.values() for pair in it.by_region.items())


def judge(policy: Policy, expected: Mapping[str, Figures], counted: Mapping[str, Counted]) -> list[str]:
    """One sentence for each fault: figures that differ, and results where the country's law forbids them."""
    found = over_all(counted)
    wrong = [
        f"the job's figures of {code} are {_words(found.get(code))}, the data file's are {_words(expected.get(code))}"
        for code in sorted(found.keys() | expected.keys())
        if found.get(code) != expected.get(code)
    ]
    for idc, it in counted.items():
        forbidden = [code for code in sorted(it.codes) if not _may_lie(policy, code, idc)]
        wrong += [f"results of {code} lie in {idc}, where its law forbids them" for code in forbidden]
    return wrong


def _may_lie(policy: Policy, code: str, idc: str) -> bool:
    residency = policy.regions.get(code)
    return residency is not None and policy.idcs.get(idc) in residency.jurisdictions


def _words(figures: Figures | None) -> str:
    return f"{figures.places:,} places with {figures.population:,} people" if figures else "none"


def _added(pairs: Iterable[tuple[str, Figures]]) -> dict[str, Figures]:
    totals: defaultdict[str, Figures] = defaultdict(Figures)
    for code, it in pairs:
        totals[code] = totals[code].plus(it)
    return dict(totals)


async def _read(url: str) -> Counted:
    connection = await asyncpg.connect(url, timeout=TIMEOUT_SECONDS)
    try:
        records: Sequence[asyncpg.Record] = await connection.fetch(_FIGURES, timeout=TIMEOUT_SECONDS)
        codes = await connection.fetch(_CODES, timeout=TIMEOUT_SECONDS)
    finally:
        await connection.close(timeout=TIMEOUT_SECONDS)
    return Counted(_added((code, Figures(*counts)) for code, *counts in records), frozenset(code for (code,) in codes))


async def read_figures(urls: Mapping[str, str]) -> dict[str, Counted]:
    """IDC -> what its database holds, read from each directly."""
    counted = await asyncio.gather(*(_read(url) for url in urls.values()))
    return dict(zip(urls, counted, strict=True))
