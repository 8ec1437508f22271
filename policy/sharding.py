"""Which shard a key is in: arithmetic that every language can repeat, fixed for as long as rows exist.

A string key's shard is the CRC-32 (IEEE 802.3, as zlib and PostgreSQL 18 compute it) of its UTF-8 bytes modulo the
number of shards; an int64 key's is the key itself modulo that number, never negative. The golden vectors in
`tests/unit/policy/shard_vectors.json` are for other languages to agree with.
"""

from __future__ import annotations

from zlib import crc32

from policy.errors import InvalidValue

MAX_SHARDS = 4096
"""Most shards that one RegionCode may have."""


def shard_of(key: str | int, shards: int) -> int:
    """Number of the shard that holds `key`, from 0 to `shards - 1`; raises `InvalidValue` when it is not Unicode."""
    if isinstance(key, str):
        try:
            return crc32(key.encode()) % shards
        except UnicodeEncodeError:
            # From None: the original error carries the key (law L1).
            raise InvalidValue("the key is not valid Unicode", field_name="key") from None
    return key % shards
