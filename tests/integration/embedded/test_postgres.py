"""The embedded PostgreSQL: made, copied, restarted, and clear about what stands in its way."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psutil
import pytest

from runtime.embedded.postgres import EmbeddedPostgres
from runtime.embedded.postgres_binaries import find_binaries
from runtime.supervisor.errors import StackError
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

# Nothing here outlives a power failure, and nothing has to.
FAST = {"fsync": "off"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can reach."""
    with tempfile.TemporaryDirectory(prefix="regiongate-embedded-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=[0o755, 0o700], ids=["reachable", "private"])
def any_folder(folder: Path, request: pytest.FixtureRequest) -> Path:
    """A folder that everybody, or only we, can reach: as root, the server runs as somebody else."""
    folder.chmod(request.param)
    return folder


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A prepared folder to copy."""
    with tempfile.TemporaryDirectory(prefix="regiongate-embedded-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        with asyncio.Runner() as runner:
            runner.run(EmbeddedPostgres(Path(name) / "template", free_port(), settings=FAST).prepare())
        yield Path(name) / "template"


async def query(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_a_server_answers_keeps_its_data_and_stops(any_folder: Path) -> None:
    server = EmbeddedPostgres(any_folder / "server", free_port(), settings=FAST)
    async with server:
        assert await query(server.url, "SELECT current_setting('fsync') || current_setting('listen_addresses')")
        await query(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = server.pid
    assert not psutil.pid_exists(pid)
    assert await server.wait() == 0
    async with EmbeddedPostgres(any_folder / "server", free_port(), settings=FAST) as again:
        assert await query(again.url, "SELECT answer FROM kept") == 42


async def test_it_demands_its_password_and_keeps_it_private(folder: Path, template: Path) -> None:
    async with EmbeddedPostgres(folder / "server", free_port(), template=template, settings=FAST) as server:
        assert (folder / "server" / "password").stat().st_mode & 0o077 == 0
        password = (folder / "server" / "password").read_text().strip()
        assert password in server.url
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.url.replace(password, "wrong"))


async def test_four_copies_of_one_template_start_side_by_side(folder: Path, template: Path) -> None:
    servers = [EmbeddedPostgres(folder / name, free_port(), template=template, settings=FAST) for name in "abcd"]
    await asyncio.gather(*(server.start() for server in servers))
    try:
        folders = [await query(server.url, "SELECT current_setting('data_directory')") for server in servers]
        assert [str(path).removeprefix(str(folder)) for path in folders] == [f"/{name}/data" for name in "abcd"]
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def test_the_default_is_durable(folder: Path, template: Path) -> None:
    async with EmbeddedPostgres(folder / "server", free_port(), template=template) as server:
        assert await query(server.url, "SELECT current_setting('fsync')") == "on"
        assert await query(server.url, "SELECT current_setting('synchronous_commit')") == "on"


async def test_a_running_template_is_not_copied(folder: Path, template: Path) -> None:
    async with EmbeddedPostgres(folder / "running", free_port(), template=template, settings=FAST):
        with pytest.raises(StackError) as caught:
            await EmbeddedPostgres(folder / "copy", free_port(), template=folder / "running").prepare()
    assert caught.value.reason == "TEMPLATE_IN_USE"


async def test_a_taken_port_is_said_to_be_taken(folder: Path, template: Path) -> None:
    port = free_port()
    async with EmbeddedPostgres(folder / "one", port, template=template, settings=FAST):
        other = EmbeddedPostgres(folder / "other", port, template=template, settings=FAST)
        with pytest.raises(StackError) as caught:
            await other.start()
        assert caught.value.reason == "PORT_TAKEN"
        assert str(port) in str(caught.value)
        assert not psutil.pid_exists(other.pid)


async def test_a_port_taken_by_something_else_is_said_to_be_taken(folder: Path, template: Path) -> None:
    port = free_port()
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
    async with listener:
        with pytest.raises(StackError) as caught:
            await EmbeddedPostgres(folder / "one", port, template=template, settings=FAST).start()
    assert caught.value.reason == "PORT_TAKEN"


async def test_a_folder_of_another_version_is_refused(folder: Path, template: Path) -> None:
    server = EmbeddedPostgres(folder / "server", free_port(), template=template, settings=FAST)
    await server.prepare()
    (folder / "server" / "data" / "PG_VERSION").write_text("14\n")
    with pytest.raises(StackError) as caught:
        await server.start()
    assert caught.value.reason == "FOLDER_OF_ANOTHER_VERSION"
    assert "14" in str(caught.value)


async def test_programs_that_do_not_run_are_named(folder: Path) -> None:
    (folder / "bin").mkdir()
    broken = folder / "bin" / "postgres"
    broken.write_text("#!/nowhere\n")
    broken.chmod(0o755)
    with pytest.raises(StackError) as caught:
        await EmbeddedPostgres(folder / "server", free_port(), binaries=folder / "bin").start()
    assert caught.value.reason == "BINARY_NOT_RUNNABLE"
    with pytest.raises(StackError) as caught:
        find_binaries(folder)
    assert caught.value.reason == "BINARY_MISSING"


async def test_a_start_that_was_cut_off_leaves_no_half_made_folder(folder: Path, template: Path) -> None:
    (folder / "server").mkdir()
    shutil.copytree(template / "data" / "base", folder / "server" / "data.partial")
    async with EmbeddedPostgres(folder / "server", free_port(), template=template, settings=FAST) as server:
        assert await query(server.url, "SELECT 1") == 1


async def test_a_killed_server_comes_back_with_its_data(any_folder: Path, template: Path) -> None:
    server = EmbeddedPostgres(any_folder / "server", free_port(), template=template, settings=FAST)
    await server.start()
    await query(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(server.pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    await server.start()
    assert await query(server.url, "SELECT answer FROM kept") == 42
    await server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux'")
async def test_a_server_does_not_outlive_the_process_that_started_it(any_folder: Path, template: Path) -> None:
    port = free_port()
    script = (
        "import asyncio, sys; from pathlib import Path; from runtime.embedded.postgres import EmbeddedPostgres\n"
        "async def main():\n"
        "    server = EmbeddedPostgres(Path(sys.argv[1]), int(sys.argv[2]), template=Path(sys.argv[3]))\n"
        "    await server.start(); print(server.pid, flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    command = (sys.executable, "-c", script, str(any_folder / "server"), str(port), str(template))
    parent = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    server = psutil.Process(pid)
    parent.kill()
    await parent.wait()
    await asyncio.to_thread(server.wait, 10)
    # And the next start does not trip over what the one before left.
    async with EmbeddedPostgres(any_folder / "server", port, settings=FAST) as again:
        assert await query(again.url, "SELECT 1") == 1
