"""A real PostgreSQL as a child process, for demos and tests: made once, started, awaited, stopped.

The server listens on loopback only, demands a generated password (SCRAM), is durable (`fsync` on), and writes neither
statements nor their values to its log, because a log is no lawful home for a row (law L1). The folder holds `data`,
`password` and `postgres.log`; it is made beside its final name and renamed, so a half-made one is never taken for a
whole one. The kernel stops the server when the process that started it dies.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import time
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

import asyncpg

from runtime.embedded.durable import sync_path, sync_tree
from runtime.embedded.postgres_binaries import (
    Account,
    choose_account,
    find_binaries,
    read_major_version,
    run,
    spawn,
)
from runtime.lifecycle import follow_parent
from runtime.supervisor.errors import StackError

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping
    from pathlib import Path

USER: Final = "regiongate"
DATABASE: Final = "regiongate"

_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Law L1: failed statements, their parameters and the DETAIL lines of errors all carry keys and values.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}
_PROBE_INTERVAL: Final = 0.02
_LOG_TAIL_BYTES: Final = 4096


class EmbeddedPostgres:
    """One server on one folder and port; `async with` starts and stops it."""

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        template: Path | None = None,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 30,
        stop_timeout: float = 10,
    ) -> None:
        """Describes a server.

        Args:
            data_dir: Its folder; made at the first start.
            port: TCP port on loopback.
            template: Another server's folder, prepared and not running, to copy instead of making one anew.
            binaries: PostgreSQL's bin folder; by default the wheel's.
            settings: Server settings beyond the default ones.
            start_timeout: Seconds until it must answer.
            stop_timeout: Seconds for an orderly end, before it is killed.
        """
        # Absolute, since the server does not run in our working folder.
        self._dir = data_dir.resolve()
        self._data = self._dir / "data"
        self._port = port
        self._template = template
        self._binaries_wanted = binaries
        self._settings = {**_SETTINGS, **(settings or {}), "port": str(port)}
        self._is_durable = self._settings.get("fsync") != "off"
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def log_path(self) -> Path:
        """Where the server's log goes."""
        return self._dir / "postgres.log"

    @property
    def url(self) -> str:
        """The database as a `postgresql://` URL; known once the folder is made, or its password chosen."""
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        password = quote((self._dir / "password").read_text(encoding="ascii").strip(), safe="")
        return f"postgresql://{USER}:{password}@127.0.0.1:{self._port}/{database}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def choose_password(self, password: str) -> None:
        """Chooses the password of a folder that is yet to be made, so that its URL is known before.

        A folder and its template must have the same one. Raises `OSError`.
        """
        self._dir.mkdir(parents=True, exist_ok=True)
        _write_private(self._dir / "password", password)

    async def prepare(self) -> None:
        """Makes the data folder if there is none yet; raises `StackError`."""
        binaries = find_binaries(self._binaries_wanted)
        major = await read_major_version(binaries)
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StackError("FOLDER_UNUSABLE", f"cannot make {self._dir}: {error.strerror}") from error
        if not self._data.exists():
            account = choose_account(self._dir, binaries, self._data)
            if self._template is not None and (self._template / "data").exists():
                await asyncio.to_thread(self._copy, self._template.absolute(), account)
            else:
                await self._initialise(binaries, account)
            return
        marker = self._data / "PG_VERSION"
        found = marker.read_text(encoding="ascii").strip() if marker.exists() else "none"
        if found != major:
            raise StackError(
                "FOLDER_OF_ANOTHER_VERSION",
                f"{self._data} was made by PostgreSQL {found}, and the programs here are version {major}",
                "use that version's programs, or choose another folder",
            )

    async def start(self) -> None:
        """Starts the server and returns when it answers; raises `StackError` with what it said otherwise."""
        await self.prepare()
        binaries = find_binaries(self._binaries_wanted)
        account = choose_account(self._dir, binaries, self._data)
        deadline = time.monotonic() + self._start_timeout
        await self._await_predecessor(deadline)
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            self._process = await spawn(
                account,
                (str(binaries / "postgres"), "-D", str(self._data), *options),
                output=log,
                # SIGINT is PostgreSQL's fast shutdown.
                before_exec=follow_parent(signal.SIGINT),
            )
        try:
            await self._await_answer(deadline, log_start)
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Waits for the server's end and returns its exit code, negative for a signal."""
        if self._process is None:
            return 0
        return await self._process.wait()

    async def stop(self) -> None:
        """Ends the server: its clients are cut off, its data are whole. Killed when that takes too long."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(self._stop_timeout):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    # ---- the folder -------------------------------------------------------------------------------------------------

    async def _initialise(self, binaries: Path, account: Account) -> None:
        partial, password_file = self._dir / "data.partial", self._dir / "password.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        account.own(partial)
        chosen = self._dir / "password"
        password = chosen.read_text(encoding="ascii") if chosen.exists() else secrets.token_urlsafe(24)
        _write_private(password_file, password)
        # Programs of another user must read it; the final file is ours alone.
        account.own(password_file)
        await run(
            account,
            str(binaries / "initdb"),
            f"--pgdata={partial}",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
            "--no-sync",
        )
        os.chown(password_file, os.geteuid(), os.getegid())
        password_file.rename(self._dir / "password")
        await asyncio.to_thread(self._make_count, partial)

    def _copy(self, template: Path, account: Account) -> None:
        if (template / "data" / "postmaster.pid").exists():
            raise StackError("TEMPLATE_IN_USE", f"a server runs on {template}: what is copied of it would not be whole")
        partial = self._dir / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(template / "data", partial, symlinks=True)
        partial.chmod(0o700)
        account.own(partial)
        _write_private(self._dir / "password", (template / "password").read_text(encoding="ascii"))
        self._make_count(partial)

    def _make_count(self, partial: Path) -> None:
        """Gives a whole folder its final name; a durable server's is on the disk before (law L3)."""
        if self._is_durable:
            sync_tree(partial)
            sync_path(self._dir / "password")
        partial.rename(self._data)
        if self._is_durable:
            for folder in (self._dir, self._dir.parent):
                sync_path(folder)

    # ---- the start --------------------------------------------------------------------------------------------------

    async def _await_predecessor(self, deadline: float) -> None:
        """Waits while a server of a killed supervisor is still shutting down on this folder."""
        pid_file = self._data / "postmaster.pid"
        while time.monotonic() < deadline:
            try:
                pid = int(pid_file.read_text(encoding="ascii").split("\n", 1)[0])
                os.kill(pid, 0)
            except (OSError, ValueError):
                return
            await asyncio.sleep(_PROBE_INTERVAL)

    async def _await_answer(self, deadline: float, log_start: int) -> None:
        """Waits for the first query to succeed, and makes the database if it is not there yet."""
        process = self._process
        assert process is not None, "not started"  # noqa: S101 (a broken promise of the caller)
        while process.returncode is None:
            if time.monotonic() > deadline:
                raise StackError("START_TOO_SLOW", f"PostgreSQL did not answer within {self._start_timeout:.0f} s")
            try:
                connection = await asyncpg.connect(self._url("postgres"), timeout=1 + int(self._start_timeout))
            except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(_PROBE_INTERVAL)
                continue
            except asyncpg.InvalidPasswordError:
                raise self._port_taken() from None
            try:
                # Copies of one template share their password: that it opens the door does not make the house ours.
                if await connection.fetchval("SELECT current_setting('data_directory')") != str(self._data):
                    raise self._port_taken()
                if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
                    await connection.execute(f"CREATE DATABASE {DATABASE}")
            finally:
                await connection.close()
            return
        raise self._explain_exit(process.returncode, log_start)

    def _port_taken(self) -> StackError:
        return StackError("PORT_TAKEN", f"port {self._port} is taken", "free it, or choose another port")

    def _explain_exit(self, code: int, log_start: int) -> StackError:
        said = _read_from(self.log_path, log_start)
        if "Address already in use" in said:
            return self._port_taken()
        # The wrapper that runs the server in a user namespace is the only one to say this.
        if said.startswith("unshare:"):
            return StackError(
                "FOLDER_UNREACHABLE",
                f"PostgreSQL does not run as root, and the user nobody cannot reach {self._dir}",
                "choose a folder that everybody can reach, or run as an ordinary user",
            )
        lines = [line for line in said.splitlines() if "FATAL" in line] or said.splitlines()
        return StackError(
            "SERVER_ENDED",
            f"PostgreSQL ended while starting (exit code {code}): {lines[-1] if lines else 'it said nothing'}",
            f"see {self.log_path}",
        )


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)


def _read_from(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
