"""`regiongate up --jobs`: runners beside the rest of the stack, with the example of docs/jobs.md as their jobs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

import regiongate
from runtime.stack_file import NAME
from runtime.supervisor.probe import read_health
from tests.support.stack import (
    ROOT,
    RunningStack,
    make_folder,
    running_stack,
    spawn_up,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL_POLICY = ROOT / "tests" / "integration" / "stack" / "small.yaml"
EXAMPLE = ROOT / "docs" / "examples" / "settle.py"
GUIDE = ROOT / "docs" / "jobs.md"
NAMES = ["runner-fra-1", "runner-fra-2", "runner-sin-1", "runner-sin-2"]
ONE_IDC = """
version: 1
idcs: {fra: {jurisdiction: EU}}
residency: [{name: europe, regions: [DE], jurisdictions: [EU], idcs: {fra: 100}, shards: 2}]
datasets: {customers: {key: string, columns: {name: {type: string}}}}
"""
SPEND = {("DE", f"de-{number}"): number for number in range(40)} | {("SG", f"sg-{number}"): 7 for number in range(20)}


@pytest.fixture(scope="module")
def jobs_stack() -> Iterator[RunningStack]:
    """A stack of two IDCs with two runners in each; the last test ends it."""
    folder = make_folder()
    arguments = ("--jobs", str(EXAMPLE), "--runners", "2")
    environment = {"REGIONGATE_LEASE_TTL": "2"}
    with running_stack(SMALL_POLICY, data_dir=folder / "data", arguments=arguments, environment=environment) as stack:
        yield stack
    shutil.rmtree(folder, ignore_errors=True)


def cli(stack: RunningStack, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "regiongate.cli.main", *words, "--data-dir", str(stack.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def jobs(stack: RunningStack) -> list[dict[str, object]]:
    return json.loads(cli(stack, "jobs", "list", "-o", "json").stdout)


async def write(stack: RunningStack, spend: dict[tuple[str, str], int]) -> None:
    for idc, code in (("fra", "DE"), ("sin", "SG")):
        puts = [regiongate.Put(it, key, {"spend": value}) for (it, key), value in spend.items() if it == code]
        async with regiongate.connect(stack.gateway(idc)) as client:
            assert all(isinstance(it, regiongate.Receipt) for it in await client.batch_write("customers", puts))


async def read(stack: RunningStack, statement: str) -> dict[str, list[tuple[object, ...]]]:
    found: dict[str, list[tuple[object, ...]]] = {}
    for idc, entry in stack.idcs.items():
        connection = await asyncpg.connect(entry.database, timeout=10)
        found[idc] = [tuple(record) for record in await connection.fetch(statement)]
        await connection.close()
    return found


async def test_each_idc_has_its_runners_in_the_stack_file(jobs_stack: RunningStack) -> None:
    runners = [it for it in jobs_stack.file.processes if it.role == "runner"]
    assert [(it.name, it.idc) for it in runners] == [(name, name.split("-")[1]) for name in NAMES]
    for runner in runners:
        os.kill(runner.pid, 0)
        assert (await read_health(runner.metrics)).is_ready


def test_the_doctor_looks_at_the_runners(jobs_stack: RunningStack) -> None:
    result = cli(jobs_stack, "doctor", "-o", "json")
    checks = {check["check"]: check["is_ok"] for check in json.loads(result.stdout)}
    assert all(checks[f"{name}{what}"] for name in NAMES for what in ("", " readiness"))
    assert result.returncode == 0


async def test_the_example_of_the_guide_settles_each_change_once(jobs_stack: RunningStack) -> None:
    make_tables(jobs_stack)
    await write(jobs_stack, {**SPEND, ("DE", "de-below-zero"): -5})
    await settle(jobs_stack, len(SPEND))
    again = {name: value + 100 for name, value in SPEND.items() if value % 2}
    await write(jobs_stack, again)
    await settle(jobs_stack, len(SPEND) + len(again))

    statements = await read(jobs_stack, "SELECT region_code, customer, spend, seq FROM effects_statements")
    assert {idc: {row[0] for row in rows} for idc, rows in statements.items()} == {"fra": {"DE"}, "sin": {"SG"}}
    told = sorted((row[0], row[1], row[2]) for rows in statements.values() for row in rows)
    assert told == sorted((*name, value) for spend in (SPEND, again) for name, value in spend.items())
    aside = json.loads(cli(jobs_stack, "jobs", "set-aside", "settle", "--idc", "fra", "-o", "json").stdout)
    assert [(row["key"], row["error"]) for row in aside] == [("de-below-zero", "spend is below zero")]
    totals = await read(jobs_stack, "SELECT region_code, shard, statements, spend FROM effects_totals")
    wanted = "SELECT region_code, shard, count(*), sum(spend) FROM effects_statements GROUP BY 1, 2"
    assert {idc: sorted(rows) for idc, rows in totals.items()} == {
        idc: sorted(rows) for idc, rows in (await read(jobs_stack, wanted)).items()
    }


def make_tables(stack: RunningStack) -> None:
    """As the guide says."""
    subprocess.run([sys.executable, EXAMPLE, stack.data_dir / NAME], timeout=60, check=True)


async def settle(stack: RunningStack, number: int) -> None:
    """Lets `settle` make a pass, and waits until `total` has come after it."""
    ordered = cli(stack, "jobs", "trigger", "settle", "--message", "now, please")
    assert ordered.returncode == 0, ordered.stderr
    async with asyncio.timeout(30):
        while True:
            totals = await read(stack, "SELECT coalesce(sum(statements), 0) FROM effects_totals")
            if sum(int(str(rows[0][0])) for rows in totals.values()) == number:
                return
            await asyncio.sleep(0.05)


def test_the_commands_of_the_guide_do_what_they_say(jobs_stack: RunningStack) -> None:
    commands = re.findall(r"^\$ regiongate (jobs (?!run ).+)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        done = cli(jobs_stack, *shlex.split(command, comments=True))
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_a_runner_that_is_killed_comes_back(jobs_stack: RunningStack) -> None:
    old = jobs_stack.signal("runner-fra-1", signal.SIGKILL)
    assert jobs_stack.wait_restarted("runner-fra-1", old) != old
    assert "runner-fra-1 was ended by SIGKILL; starting it again" in jobs_stack.said()
    metrics = jobs_stack.file.process("runner-fra-1").metrics
    wait_until(lambda: asyncio.run(read_health(metrics)).is_ready, 30, "runner-fra-1 is not ready again")


def test_ctrl_c_lets_the_runners_finish_before_the_gateways_go(jobs_stack: RunningStack) -> None:
    pids = [process.pid for process in jobs_stack.file.processes]
    assert jobs_stack.stop(signal.SIGINT) == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    ended = {}
    for name in (*NAMES, "gateway-fra", "gateway-sin"):
        lines = [json.loads(line) for line in jobs_stack.log(name).splitlines() if line.startswith("{")]
        ended[name] = next(line["timestamp"] for line in reversed(lines) if line["event"] == "drained")
    assert max(ended[name] for name in NAMES) <= min(ended["gateway-fra"], ended["gateway-sin"])


def test_a_job_that_does_not_fit_the_policy_ends_the_start_with_the_runners_words() -> None:
    folder = make_folder()
    module, policy = folder / "misfit.py", folder / "policy.yaml"
    module.write_text("import regiongate\n\n@regiongate.job(dataset='orders')\ndef misfit(batch): ...\n")
    policy.write_text(ONE_IDC)
    stack = spawn_up(folder / "data", "--policy", str(policy), "--jobs", str(module))
    try:
        assert stack.process.wait(60) == 1
        assert "CANNOT_START: runner-fra-1 ended with exit code 1" in stack.said()
        assert "orders" in stack.said()
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_file_of_jobs_that_is_not_there_is_said_so_before_anything_starts() -> None:
    command = [sys.executable, "-m", "regiongate.cli.main", "up", "--jobs", "nowhere.py", "--data-dir", "/nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert result.returncode == 1
    assert "error: NO_SUCH_MODULE: nowhere.py: there is no such file" in result.stderr
