"""What a caller states is believed only as far as it can do no harm."""

from __future__ import annotations

import pytest

from gateway.identity import (
    INGRESS,
    ORIGIN,
    PURPOSE,
    TRACEPARENT,
    Caller,
    ClientSide,
    PeerSide,
    check_controller,
    check_ingress,
)
from policy.errors import AccessDenied, InvalidInput


class Context:
    """As much of gRPC's context as identity looks at."""

    def __init__(self, *uris: str, **metadata: str) -> None:
        self._uris = uris
        self._metadata = tuple((name.replace("_", "-"), value) for name, value in metadata.items())

    def invocation_metadata(self):
        return self._metadata

    def auth_context(self):
        return {"peer_spiffe_id": [uri.encode() for uri in self._uris]} if self._uris else {}


def context(*uris: str, **metadata: str):
    named = {"purpose": PURPOSE, "origin": ORIGIN, "ingress": INGRESS, "trace": TRACEPARENT}
    return Context(*uris, **{named[name]: value for name, value in metadata.items()})


def test_a_client_states_purpose_origin_and_trace():
    caller = ClientSide().identify(context(purpose="support", origin="sin", trace="00-a-b-01"))
    assert caller == Caller("support", "sin", "", "00-a-b-01")


def test_a_client_that_states_an_ingress_is_refused_because_the_call_has_crossed_a_hop_already():
    with pytest.raises(InvalidInput) as caught:
        ClientSide().identify(context(ingress="fra"))
    assert caught.value.field_name == INGRESS


@pytest.mark.parametrize("origin", ["", "a b", "x" * 64, "fra\n"])
def test_an_origin_that_is_no_name_of_an_idc_is_refused(origin: str):
    with pytest.raises(InvalidInput):
        ClientSide().identify(context(origin=origin))


def test_a_purpose_of_any_length_is_not_taken():
    with pytest.raises(InvalidInput):
        ClientSide().identify(context(purpose="x" * 65))


def test_a_plaintext_peer_is_believed():
    assert PeerSide(has_tls=False).identify(context(ingress="sin")).ingress_idc == "sin"


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://regiongate/idc/fra",),
        ("spiffe://regiongate/controller",),
        ("spiffe://elsewhere/idc/sin",),
        ("spiffe://regiongate/idc/sin2",),
    ],
)
def test_a_peer_whose_certificate_names_another_idc_is_refused(uris: tuple[str, ...]):
    with pytest.raises(AccessDenied):
        PeerSide(has_tls=True).identify(context(*uris, ingress="sin"))


def test_a_peer_whose_certificate_names_its_idc_is_believed():
    assert PeerSide(has_tls=True).identify(context("spiffe://regiongate/idc/sin", ingress="sin")).ingress_idc == "sin"


def test_who_states_no_ingress_on_the_peer_listener_must_be_the_controller():
    side = PeerSide(has_tls=True)
    assert side.identify(context("spiffe://regiongate/controller")) == Caller()
    with pytest.raises(AccessDenied):
        side.identify(context("spiffe://regiongate/idc/sin"))


def test_rows_are_for_gateways_and_fences_for_the_controller():
    check_ingress("sin")
    check_controller("")
    with pytest.raises(InvalidInput):
        check_ingress("")
    with pytest.raises(InvalidInput):
        check_controller("sin")
