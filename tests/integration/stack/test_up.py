"""`regiongate up`: the whole stack comes up, survives what happens to it, and goes without leaving anything behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg
import psutil
import pytest

import regiongate
from runtime.stack_file import NAME
from runtime.supervisor.ports import choose_ports
from runtime.supervisor.probe import read_health
from tests.support.stack import (
    ROOT,
    RunningStack,
    make_folder,
    running_stack,
    spawn_up,
    start_stack,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL_POLICY = ROOT / "tests" / "integration" / "stack" / "small.yaml"
IDCS = {"sha", "fra", "ams", "sin"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is not there yet, in one that every user can reach."""
    parent = make_folder()
    yield parent / "data"
    shutil.rmtree(parent, ignore_errors=True)


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "regiongate.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def pids_of(stack: RunningStack) -> list[int]:
    return [process.pid for process in stack.file.processes]


def assert_all_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(_is_running, pids)), 15, f"still running: {[*filter(_is_running, pids)]}")


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_every_part_answers_where_the_stack_file_says(stack: RunningStack) -> None:
    assert set(stack.idcs) == IDCS
    roles = sorted(process.role for process in stack.file.processes)
    assert roles == ["controller", "etcd", *["gateway"] * 4, *["postgres"] * 4]
    for process in stack.file.processes:
        assert _is_running(process.pid)
        if process.metrics:
            assert (await read_health(process.metrics)).is_ready
    for entry in stack.idcs.values():
        connection = await asyncpg.connect(entry.database)
        assert await connection.fetchval("SELECT count(*) FROM shard_fences") > 0
        await connection.close()


async def test_the_first_policy_is_effective_and_its_shards_are_open(stack: RunningStack) -> None:
    async with regiongate.connect(stack.gateway("sin")) as client:
        await client.put("customers", "SG", "up-1", {"name": "x"})
        row = await client.get("customers", "SG", "up-1")
    assert row.values["name"] == "x"


def test_the_doctor_finds_a_running_stack_well(stack: RunningStack) -> None:
    result = cli("doctor", "--data-dir", str(stack.data_dir), "-o", "json")
    checks = json.loads(result.stdout)
    assert [check for check in checks if not check["is_ok"]] == []
    assert {"etcd", "database of fra", "gateway-fra readiness", "policy revision"} <= {c["check"] for c in checks}
    assert result.returncode == 0


def test_a_second_stack_on_the_folder_is_refused(stack: RunningStack) -> None:
    result = cli("up", "--data-dir", str(stack.data_dir))
    assert result.returncode == 1
    assert f"error: FOLDER_IN_USE: {stack.data_dir} is in use by another stack (process {stack.process.pid})" in (
        result.stderr
    )


def test_a_restart_goes_on_with_the_data_on_the_same_ports_without_naming_the_policy(folder: Path) -> None:
    async def put(target: str) -> int:
        async with regiongate.connect(target) as client:
            return (await client.put("customers", "DE", "kept", {"name": "x"})).version

    async def get(target: str) -> int:
        async with regiongate.connect(target) as client:
            return (await client.get("customers", "DE", "kept")).version

    stack = start_stack(folder, "--policy", str(SMALL_POLICY))
    before, pids = stack.idcs, pids_of(stack)
    version = asyncio.run(put(stack.gateway("fra")))
    assert stack.stop(signal.SIGINT) == 0
    assert_all_gone(pids)
    assert not (folder / NAME).exists()

    again = start_stack(folder)
    try:
        assert {idc: entry.gateway for idc, entry in again.idcs.items()} == {
            idc: entry.gateway for idc, entry in before.items()
        }
        assert asyncio.run(get(again.gateway("fra"))) == version
    finally:
        again.stop()


def test_a_killed_process_comes_back_and_a_killed_supervisor_leaves_nothing_behind(folder: Path) -> None:
    stack = start_stack(folder, "--policy", str(SMALL_POLICY))
    for name in ("gateway-fra", "controller", "postgres-fra", "etcd"):
        old = stack.signal(name, signal.SIGKILL)
        stack.wait_restarted(name, old)
    assert "gateway-fra was ended by SIGKILL; starting it again" in stack.said()
    metrics = stack.idcs["fra"].metrics
    wait_until(lambda: asyncio.run(read_health(metrics)).is_ready, 30, "gateway-fra is not ready again")

    pids = pids_of(stack)
    stack.process.kill()
    stack.process.wait()
    assert_all_gone(pids)
    again = start_stack(folder)
    assert again.stop() == 0


def test_a_stop_in_the_middle_of_the_start_leaves_nothing_running(folder: Path) -> None:
    stack = spawn_up(folder, "--policy", str(SMALL_POLICY))
    wait_until(lambda: "etcd answers" in stack.said(), 30, "etcd did not come up")
    family = [child.pid for child in psutil.Process(stack.process.pid).children(recursive=True)]
    assert family
    assert stack.stop(signal.SIGTERM) == 0
    assert_all_gone(family)


def test_a_process_that_ends_during_the_start_is_told_with_its_last_words(folder: Path) -> None:
    environment = {"REGIONGATE_OPEN_TIMEOUT": "soon"}  # a setting that only the controller reads
    stack = spawn_up(folder, "--policy", str(SMALL_POLICY), environment=environment)
    assert stack.process.wait(30) == 1
    assert "CANNOT_START: controller ended with exit code 2" in stack.said()
    assert "--open-timeout" in stack.said()


def test_a_stack_without_a_policy_waits_for_one(folder: Path) -> None:
    with running_stack(None, data_dir=folder, arguments=("--idcs", "fra,sin")) as stack:
        assert "no policy yet" in stack.said()
        applied = cli("policy", "apply", str(SMALL_POLICY), "--data-dir", str(folder))
        assert applied.returncode == 0, applied.stderr


def test_a_taken_port_is_named_with_its_use(folder: Path) -> None:
    base = choose_ports(["x"], {})["x"]
    with socket.create_server(("127.0.0.1", base)):
        result = cli("up", "--data-dir", str(folder), "--idcs", "fra", "--base-port", str(base))
    assert result.returncode == 1
    assert (
        f"error: PORT_TAKEN: port {base}, wanted for gateway of fra, is taken by process {os.getpid()}" in result.stderr
    )


def test_a_folder_of_another_version_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "layout.json").write_text(json.dumps({"format": 0, "idcs": ["fra"], "ports": {}}))
    result = cli("up", "--data-dir", str(folder), "--idcs", "fra")
    assert result.returncode == 1
    assert "error: FOLDER_OF_ANOTHER_VERSION: " in result.stderr


def test_nothing_that_names_an_idc_is_said_so(folder: Path) -> None:
    result = cli("up", "--data-dir", str(folder))
    assert "error: NO_IDCS: nothing says which IDCs to run (give --policy FILE, or --idcs a,b)" in result.stderr


def test_a_policy_that_does_not_stand_is_refused_with_every_finding_before_anything_starts(folder: Path) -> None:
    policy = folder.with_name("policy.yaml")
    policy.write_text("version: 1\nidcs:\n  fra: {jurisdiction: EU}\nresidency: 7\nsurprise: 1\n")
    result = cli("up", "--data-dir", str(folder), "--policy", str(policy))
    assert result.returncode == 1
    assert "error: POLICY_REJECTED: " in result.stderr
    assert f"{policy}:4:" in result.stderr
    assert f"{policy}:5:" in result.stderr
    assert not (folder / "etcd").exists()
