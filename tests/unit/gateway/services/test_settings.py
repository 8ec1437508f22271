"""A gateway's settings: plaintext leaves a machine only by someone's own words."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from gateway.settings import Address, GatewaySettings

BASE = {"idc": "fra", "database_url": "postgresql://user:secret@db/name"}


def test_addresses_are_read_and_written_as_people_do():
    settings = GatewaySettings(**BASE, listen="[::1]:7000", peer_listen="localhost:0")
    assert settings.listen == Address("::1", 7000)
    assert (str(settings.listen), str(settings.peer_listen)) == ("[::1]:7000", "localhost:0")


@pytest.mark.parametrize("listen", ["7000", "host", "host:", ":7000", "host:70000", "host:-1"])
def test_what_is_no_address_is_refused(listen: str):
    with pytest.raises(ValidationError):
        GatewaySettings(**BASE, listen=listen)


@pytest.mark.parametrize("name", ["listen", "peer_listen"])
def test_plaintext_beyond_loopback_must_be_asked_for_in_so_many_words(name: str):
    with pytest.raises(ValidationError, match="not a loopback address"):
        GatewaySettings(**BASE, **{name: "10.0.0.5:7000"})
    assert GatewaySettings(**BASE, **{name: "10.0.0.5:7000"}, insecure_listen=True)


def test_an_address_that_nobody_can_connect_to_needs_one_to_tell(tmp_path):
    with pytest.raises(ValidationError, match="advertise"):
        GatewaySettings(**BASE, listen="0.0.0.0:7000", insecure_listen=True)
    assert GatewaySettings(**BASE, listen="0.0.0.0:7000", advertise="fra.example:7000", insecure_listen=True)


def test_the_databases_password_is_never_shown():
    assert "secret" not in repr(GatewaySettings(**BASE))


def test_durations_are_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REGIONGATE_LEASE_TTL", "7.5")
    assert GatewaySettings(**BASE).lease_ttl == timedelta(seconds=7.5)
