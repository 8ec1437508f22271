"""The embedded etcd: starting, stopping, and saying why it cannot."""

import socket
import stat

import pytest

from runtime.embedded import EmbeddedServerError
from runtime.embedded.etcd import EmbeddedEtcd, EtcdOptions
from runtime.etcd import EtcdClient
from tests.support.etcd import debian_binary, settings_of
from tests.support.ports import free_ports


async def test_a_second_start_on_the_same_folder_continues_with_the_data_even_on_other_ports(tmp_path):
    async with EmbeddedEtcd(tmp_path, *free_ports(2)) as etcd:
        assert etcd.pid > 0
        async with EtcdClient(settings_of(etcd)) as client:
            await client.put("/k", b"kept")
    assert not etcd.is_running
    assert etcd.pid == 0
    async with EmbeddedEtcd(tmp_path, *free_ports(2)) as again, EtcdClient(settings_of(again)) as client:
        assert (await client.get("/k")).value == b"kept"


async def test_a_killed_server_starts_again_with_what_it_acknowledged(tmp_path):
    async with EmbeddedEtcd(tmp_path, *free_ports(2)) as etcd, EtcdClient(settings_of(etcd)) as client:
        await client.put("/k", b"kept")
        await etcd.kill()
        await etcd.start()
        assert (await client.get("/k")).value == b"kept"


@pytest.mark.parametrize("which", [0, 1])
async def test_a_port_that_is_taken_is_named(tmp_path, which):
    ports = free_ports(2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports[which]))
        other.listen()
        with pytest.raises(EmbeddedServerError, match=f"port {ports[which]} for etcd is taken"):
            await EmbeddedEtcd(tmp_path, *ports).start()


async def test_a_folder_of_another_release_line_is_refused(tmp_path):
    async with EmbeddedEtcd(tmp_path, *free_ports(2)):
        pass
    older = EmbeddedEtcd(tmp_path, *free_ports(2), EtcdOptions(binary=debian_binary()))
    with pytest.raises(EmbeddedServerError, match=r"written by etcd 3\.5, this is etcd 3\.4"):
        await older.start()


async def test_a_binary_that_does_not_run_is_named(tmp_path):
    binary = tmp_path / "etcd"
    binary.write_text("not a program")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(EmbeddedServerError, match="does not run on this machine"):
        await EmbeddedEtcd(tmp_path / "data", *free_ports(2), EtcdOptions(binary=binary)).start()


async def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(EmbeddedServerError, match="cannot use"):
        await EmbeddedEtcd(tmp_path / "data", *free_ports(2)).start()


async def test_a_server_that_ends_at_once_shows_its_log(tmp_path):
    store = tmp_path / "store" / "member"
    store.mkdir(parents=True)
    (store / "snap").write_text("broken")
    etcd = EmbeddedEtcd(tmp_path, *free_ports(2))
    with pytest.raises(EmbeddedServerError, match="its log says"):
        await etcd.start()
    assert not etcd.is_running
