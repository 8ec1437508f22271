"""TLS: clients and peers are who their certificates say, and certificates can be replaced while serving."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import shard_service_pb2 as shard_pb
from regiongate.v1 import types_pb2
from regiongate.v1.row_service_pb2_grpc import RowServiceStub
from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub
from tests.support.certs import Authority, Files
from tests.support.gateways import EUROPE, READY_SECONDS, Site, refusal, running_site

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPIFFE = "spiffe://regiongate"


class Certificates:
    """Everything that the gateways and those who call them show."""

    def __init__(self, folder) -> None:
        self.authority = Authority(folder / "ours")
        self.stranger = Authority(folder / "theirs", "another CA")
        self.server = self.authority.issue("server")
        self.peers = {idc: self.authority.issue(f"peer-{idc}", uri=f"{SPIFFE}/idc/{idc}") for idc in ("fra", "ams")}
        self.controller = self.authority.issue("controller", uri=f"{SPIFFE}/controller")
        self.client = self.authority.issue("client")


def credentials(files: Files | None, ca) -> grpc.ChannelCredentials:
    if files is None:
        return grpc.ssl_channel_credentials(ca.read_bytes())
    return grpc.ssl_channel_credentials(ca.read_bytes(), files.key.read_bytes(), files.cert.read_bytes())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certs"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server, certificates: Certificates):
    made = certificates

    def options(idc: str) -> dict[str, object]:
        peer = made.peers[idc]
        return {
            "tls_cert_file": made.server.cert,
            "tls_key_file": made.server.key,
            "tls_client_ca_file": made.authority.file,
            "peer_cert_file": peer.cert,
            "peer_key_file": peer.key,
            "peer_ca_file": peer.ca,
        }

    async with running_site(
        etcd.endpoint,
        postgres_server,
        "fra",
        "ams",
        policy=EUROPE,
        options=options,
        client_credentials=credentials(made.client, made.authority.file),
        controller_credentials=credentials(made.controller, made.authority.file),
    ) as running:
        yield running


async def test_rows_travel_between_idcs_by_mutual_tls(site: Site):
    for number in range(8):
        key = types_pb2.Key(string_key=f"tls-{number}")
        columns = {"spend": types_pb2.Value(int64_value=number)}
        request = pb.PutRowRequest(dataset="customers", region_code="DE", key=key, columns=columns)
        await site["fra"].rows.PutRow(request, timeout=5)
        read = pb.GetRowRequest(dataset="customers", region_code="DE", key=key)
        found = await site["ams"].rows.GetRow(read, timeout=5)
        assert found.row.columns["spend"].int64_value == number


@pytest.mark.parametrize("who", ["nobody", "a stranger", "plaintext"])
async def test_a_client_without_a_certificate_of_ours_is_not_let_in(site: Site, certificates: Certificates, who: str):
    address = str(site["fra"].gateway.address)
    ca = certificates.authority.file
    shown = certificates.stranger.issue("client") if who == "a stranger" else None
    channel = (
        grpc.aio.insecure_channel(address)
        if who == "plaintext"
        else grpc.aio.secure_channel(address, credentials(shown, ca))
    )
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RowServiceStub(channel).GetRow(pb.GetRowRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_cannot_say_that_a_call_has_entered_elsewhere(site: Site, certificates: Certificates):
    address = str(site["fra"].gateway.peer_address)
    shown = credentials(certificates.peers["ams"], certificates.authority.file)
    scan = shard_pb.ScanRowsRequest(
        dataset="customers", shards=[shard_pb.ShardRef(region_code="DE", shard=0, epoch=1)], limit=1
    )
    async with grpc.aio.secure_channel(address, shown) as channel:
        shards = ShardServiceStub(channel)
        stated = [("x-regiongate-ingress", "fra")]
        code, reason, _ = await refusal(shards.ScanRows(scan, timeout=5, metadata=stated))
        assert (code, reason) == ("PERMISSION_DENIED", "ACCESS_DENIED")
        stream = RowServiceStub(channel).Exchange(metadata=stated)
        assert (await refusal(stream.read()))[1] == "ACCESS_DENIED"


async def test_only_the_controller_reaches_fences(site: Site, certificates: Certificates):
    address = str(site["fra"].gateway.peer_address)
    asked = shard_pb.GetFencesRequest()
    for files, is_let_in in ((certificates.peers["ams"], False), (certificates.controller, True)):
        shown = credentials(files, certificates.authority.file)
        async with grpc.aio.secure_channel(address, shown) as channel:
            call = ShardServiceStub(channel).GetFences(asked, timeout=5)
            if is_let_in:
                assert (await call).fences
            else:
                assert (await refusal(call))[1] == "ACCESS_DENIED"


async def test_a_replaced_certificate_is_shown_from_the_next_connection_on(site: Site, certificates: Certificates):
    """Whoever trusts only the new certificate's CA gets in as soon as the files have changed."""
    address = str(site["ams"].gateway.address)
    server, newer = certificates.server, certificates.stranger.issue("server")
    options = [("grpc.use_local_subchannel_pool", 1)]
    shown = grpc.ssl_channel_credentials(
        newer.ca.read_bytes(), certificates.client.key.read_bytes(), certificates.client.cert.read_bytes()
    )
    read = pb.GetRowRequest(dataset="customers", region_code="DE", key=types_pb2.Key(string_key="rotated"))
    async with grpc.aio.secure_channel(address, shown, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await RowServiceStub(channel).GetRow(read, timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    before = server.cert.read_bytes(), server.key.read_bytes()
    server.key.write_bytes(newer.key.read_bytes())
    server.cert.write_bytes(newer.cert.read_bytes())
    try:
        async with grpc.aio.secure_channel(address, shown, options=options) as channel:
            assert (await refusal(RowServiceStub(channel).GetRow(read, timeout=READY_SECONDS)))[1] == "ROW_NOT_FOUND"
    finally:
        server.cert.write_bytes(before[0])
        server.key.write_bytes(before[1])
