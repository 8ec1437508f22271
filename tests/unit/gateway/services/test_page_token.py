"""A page token belongs to its request, and to no other."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.page_token import listing_digest, make_page_token, read_page_token
from policy.errors import InvalidPageToken
from policy.model import Dataset, KeyType

STRINGS = Dataset("customers", KeyType.STRING, {})
NUMBERS = Dataset("orders", KeyType.INT64, {})
DIGEST = listing_digest("customers", "DE", "spend > 1", ["name"])


@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_a_token_gives_back_the_key_it_was_made_of(key: str):
    assert read_page_token(make_page_token(DIGEST, key), DIGEST, STRINGS) == key


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_token_of_a_number_gives_back_the_number(key: int):
    assert read_page_token(make_page_token(DIGEST, key), DIGEST, NUMBERS) == key


@pytest.mark.parametrize(
    "other",
    [
        listing_digest("orders", "DE", "spend > 1", ["name"]),
        listing_digest("customers", "FR", "spend > 1", ["name"]),
        listing_digest("customers", "DE", "spend > 2", ["name"]),
        listing_digest("customers", "DE", "spend > 1", []),
    ],
)
def test_a_token_of_another_request_is_refused(other: str):
    with pytest.raises(InvalidPageToken):
        read_page_token(make_page_token(other, "k"), DIGEST, STRINGS)


def test_the_order_of_the_columns_does_not_matter():
    assert listing_digest("d", "DE", "", ["a", "b"]) == listing_digest("d", "DE", "", ["b", "a", "a"])


def test_a_key_of_the_wrong_kind_is_refused():
    with pytest.raises(InvalidPageToken):
        read_page_token(make_page_token(DIGEST, 7), DIGEST, STRINGS)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_single_changed_byte_passes(position: int, change: int):
    token = make_page_token(DIGEST, "key-1")
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[position % len(raw)] ^= change
    with pytest.raises(InvalidPageToken):
        read_page_token(base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("="), DIGEST, STRINGS)


@given(st.text(max_size=200))
def test_whatever_is_not_a_token_is_refused_with_its_own_reason(text: str):
    with pytest.raises(InvalidPageToken) as caught:
        read_page_token(text, DIGEST, STRINGS)
    assert len(text) < 4 or text not in str(caught.value)
