"""First signal drains, second exits; a child never outlives its parent."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

MAIN = """
import asyncio
from runtime import lifecycle
from runtime.telemetry.logs import setup_logging

setup_logging("test")

async def main(stop):
    print("up", flush=True)
    await stop.wait()
    print("draining", flush=True)
    {after}
    return {code}

raise SystemExit(lifecycle.run(main))
"""
PARENT = """
import os, subprocess, sys, time
environment = {{**os.environ, "REGIONGATE_PARENT_PID": str(os.getpid())}}
child = subprocess.Popen([sys.executable, "-c", {code!r}], env=environment, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def start(code: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(number: signal.Signals) -> None:
    process = start(MAIN.format(after="pass", code=3))
    assert read_line(process) == "up"
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == "draining\n"
    assert process.returncode == 3


def test_the_second_signal_ends_at_once() -> None:
    process = start(MAIN.format(after="await asyncio.sleep(60)", code=0))
    assert read_line(process) == "up"
    process.send_signal(signal.SIGTERM)
    assert read_line(process) == "draining"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 130


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_a_child_ends_when_its_supervisor_is_killed() -> None:
    parent = start(PARENT.format(code=MAIN.format(after="pass", code=0)))
    child = psutil.Process(int(read_line(parent)))
    parent.kill()
    parent.communicate(timeout=10)
    child.wait(timeout=10)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_a_child_that_comes_too_late_does_not_start() -> None:
    environment = {**os.environ, "REGIONGATE_PARENT_PID": "1"}
    code = MAIN.format(after="pass", code=0)
    process = start(code, environment)
    _, errors = process.communicate(timeout=10)
    assert "supervisor (process 1) is gone" in errors
    assert process.returncode == 1
