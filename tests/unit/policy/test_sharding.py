import json
from pathlib import Path

import pytest

from policy.errors import InvalidValue
from policy.sharding import shard_of

VECTORS = json.loads((Path(__file__).parent / "shard_vectors.json").read_text(encoding="utf-8"))["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['key_type']}-{v['key'][:12]}-{v['shards']}")
def test_shards_agree_with_the_golden_vectors(vector):
    key = int(vector["key"]) if vector["key_type"] == "int64" else vector["key"]
    assert shard_of(key, vector["shards"]) == vector["shard"]


def test_the_hash_is_the_crc_32_that_every_language_has():
    assert shard_of("123456789", 2**32) == 0xCBF43926  # the check value of CRC-32/ISO-HDLC


def test_a_key_that_is_not_unicode_is_refused_without_being_repeated_l1():
    with pytest.raises(InvalidValue) as raised:
        shard_of("secret\ud800", 16)
    assert "secret" not in str(raised.value)
    assert raised.value.__suppress_context__
    assert raised.value.__cause__ is None
