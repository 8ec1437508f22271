"""Page tokens: where a listing goes on, bound to the request that it came from.

A token is opaque to callers: a checksum and the last key, for a listing of this dataset, RegionCode, filter and columns
and of no other. It grants nothing, since each page is judged anew.
"""

from __future__ import annotations

import base64
import binascii
import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, cast

from policy.errors import InvalidPageToken
from policy.model import KeyType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.model import Dataset

_VERSION: Final = 1
_CHECKSUM_BYTES: Final = 8
_MAX_LENGTH: Final = 8192


def listing_digest(dataset: str, region_code: str, filter_text: str, columns: Iterable[str]) -> str:
    """Stands for everything in a request that its page tokens belong to."""
    parts = json.dumps([dataset, region_code, filter_text, sorted(set(columns))])
    return blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def make_page_token(digest: str, key: str | int) -> str:
    """The token for the page after `key`."""
    payload = json.dumps([_VERSION, digest, key], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_checksum(payload) + payload).decode().rstrip("=")


def read_page_token(token: str, digest: str, dataset: Dataset) -> str | int:
    """The key that the page comes after; raises `InvalidPageToken`."""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        payload = raw[_CHECKSUM_BYTES:]
        if len(token) > _MAX_LENGTH or _checksum(payload) != raw[:_CHECKSUM_BYTES]:
            raise _invalid()
        version, made_for, key = cast("tuple[object, object, object]", json.loads(payload))
    except (ValueError, binascii.Error, TypeError):
        raise _invalid() from None
    wanted = int if dataset.key_type is KeyType.INT64 else str
    if version != _VERSION or made_for != digest or not isinstance(key, wanted):
        raise _invalid()
    return key


def _checksum(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_CHECKSUM_BYTES, person=b"regiongate-page").digest()


def _invalid() -> InvalidPageToken:
    return InvalidPageToken("the page token was not made for this request", field_name="page_token")
