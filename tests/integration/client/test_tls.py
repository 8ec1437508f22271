"""TLS and mutual TLS between the client and its gateways."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
import trustme

import regiongate
from gateway.client import ClientSettings, TlsFiles
from regiongate.cli.main import run
from regiongate.errors import PeerUnreachable
from tests.integration.client.cluster import running

if TYPE_CHECKING:
    from pathlib import Path

HURRIED = timedelta(seconds=1)


def files_of(folder: Path, authority: trustme.CA, client: trustme.LeafCert | None = None) -> TlsFiles:
    ca, cert, key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    authority.cert_pem.write_to_path(ca)
    if client is None:
        return TlsFiles(ca, server_name="gateway.example")
    client.cert_chain_pems[0].write_to_path(cert)
    client.private_key_pem.write_to_path(key)
    return TlsFiles(ca, cert, key, server_name="gateway.example")


def server_credentials(authority: trustme.CA, *, mutual: bool) -> grpc.ServerCredentials:
    leaf = authority.issue_cert("gateway.example")
    pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())
    return grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=mutual)


async def test_rows_travel_over_mutual_tls_also_straight_to_the_owner(tmp_path):
    authority = trustme.CA()
    tls = files_of(tmp_path, authority, authority.issue_cert("app.example"))
    async with (
        running(credentials=server_credentials(authority, mutual=True)) as sites,
        regiongate.connect(sites["sin"].address, tls=tls) as client,
    ):
        await client.put("customers", "DE", "k", {"spend": 1})
        assert sites["sin"].world.asked[0].idc in {"fra", "ams"}


async def test_without_a_certificate_a_gateway_that_wants_one_does_not_talk(tmp_path):
    authority = trustme.CA()
    settings = ClientSettings(tls=files_of(tmp_path, authority), connect_timeout=HURRIED)
    async with running(credentials=server_credentials(authority, mutual=True)) as sites:
        with pytest.raises(PeerUnreachable):
            async with regiongate.connect(sites["sin"].address, settings=settings):
                pass


async def test_a_gateway_of_another_authority_is_not_believed(tmp_path):
    settings = ClientSettings(tls=files_of(tmp_path, trustme.CA()), connect_timeout=HURRIED)
    async with running(credentials=server_credentials(trustme.CA(), mutual=False)) as sites:
        with pytest.raises(PeerUnreachable):
            async with regiongate.connect(sites["sin"].address, settings=settings):
                pass


def test_half_of_a_certificate_is_refused_by_the_command(tmp_path, capsys):
    arguments = ["rows", "get", "customers", "DE", "k", "--target", "127.0.0.1:1"]
    assert run([*arguments, "--cert-file", str(tmp_path / "cert.pem")]) == 1
    assert "error: BAD_TLS_FILES: " in capsys.readouterr().err
