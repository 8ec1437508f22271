"""Looks into every IDC's database directly, past the gateways, and says which rows lie where they must not.

The proof trusts nothing that regiongate answers: it compares what the tables hold with the policy document and with
the data file.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from rowstore.tables import table_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.compile import Policy
    from regiongate.demo.places import Place

TIMEOUT_SECONDS = 30


@dataclass(slots=True)
class Placement:
    """What lies where, and what is wrong with it."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    """IDC -> RegionCode -> live rows."""
    wrong: list[str] = field(default_factory=list)
    """One sentence for each kind of fault; empty when all is lawful. Names no key (law L1)."""

    @property
    def total(self) -> int:
        """Live rows over all IDCs."""
        return sum(counter.total() for counter in self.rows.values())


async def _stored(url: str, dataset: str) -> dict[str, str]:
    """Key -> RegionCode of the live rows of one database."""
    connection = await asyncpg.connect(url, timeout=TIMEOUT_SECONDS)
    try:
        query = f'SELECT key, region_code FROM "{table_name(dataset)}" WHERE NOT deleted'  # noqa: S608 - our own name
        records = await connection.fetch(query, timeout=TIMEOUT_SECONDS)
        return {record["key"]: record["region_code"] for record in records}
    finally:
        await connection.close(timeout=TIMEOUT_SECONDS)


async def read_databases(urls: Mapping[str, str], dataset: str) -> dict[str, dict[str, str]]:
    """IDC -> key -> RegionCode, read from each database directly."""
    stored = await asyncio.gather(*(_stored(url, dataset) for url in urls.values()))
    return dict(zip(urls, stored, strict=True))


def judge(policy: Policy, places: Sequence[Place], stored: Mapping[str, Mapping[str, str]]) -> Placement:
    """Compares what is stored with the law and with the data: every place once, under its own tag, in a lawful IDC."""
    placement = Placement({idc: Counter(rows.values()) for idc, rows in stored.items()})
    for idc, counter in placement.rows.items():
        for region_code, count in sorted(counter.items()):
            residency = policy.regions.get(region_code)
            if residency is None or policy.idcs.get(idc) not in residency.jurisdictions:
                placement.wrong.append(f"{count} rows of {region_code} lie in {idc}, where its law forbids them")
    found: Counter[str] = Counter()
    tags: dict[str, str] = {}
    for rows in stored.values():
        found.update(rows.keys())
        tags.update(rows)
    expected = {place.key: place.region_code for place in places}
    faults = {
        "places are missing from every database": len(expected.keys() - found.keys()),
        "rows are in no data file": len(found.keys() - expected.keys()),
        "rows lie in more than one IDC": sum(1 for count in found.values() if count > 1),
        "rows carry another tag than their country's": sum(
            1 for key in tags.keys() & expected if tags[key] != expected[key]
        ),
    }
    placement.wrong += [f"{count} {what}" for what, count in faults.items() if count]
    return placement
