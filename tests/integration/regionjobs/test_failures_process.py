"""`regiongate jobs run` with what cannot be run: one line, exit code 1; and with a handler that never ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from rowstore.jobs import registry
from rowstore.jobs.model import JobRecord
from runtime.lifecycle import PARENT_VARIABLE
from tests.support.ports import free_port
from tests.support.row_databases import until

MODULE = """
import regiongate

@regiongate.job(dataset={dataset!r}, regions={regions!r}, kind="long-running", name={name!r})
async def handle(batch):
    pass
"""
NEVER = """
import asyncio
import pathlib
import threading
import regiongate

@regiongate.job(dataset="customers", kind="long-running")
async def stubborn(batch):
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    pathlib.Path({marker!r}).touch()
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
"""
SECRET = """
import regiongate

@regiongate.job(dataset="customers")
async def handle(batch):
    pass

raise ValueError("first line\\nsecond line")
"""


async def started(site, file, **settings):
    """A runner process of fra."""
    given = {
        "cluster": site.keys.root.strip("/").split("/")[-1],
        "idc": "fra",
        "etcd_endpoints": site.endpoint,
        "database_url": site.idcs["fra"].url,
        "metrics_port": free_port(),
        "lease_ttl": 2,
        "drain_timeout": 0.5,
        **settings,
    }
    variables = {f"REGIONGATE_{key.upper()}": str(value) for key, value in given.items()}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "regiongate.cli.main", "jobs", "run", str(file),
        env=os.environ | variables | {PARENT_VARIABLE: str(os.getpid())},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def complaint(process):
    """Its exit code, and what it says at last."""
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_what_cannot_be_run_ends_the_process_with_one_line_that_names_it(site, tmp_path):
    await registry.register(site.idcs["fra"].database.fetch, JobRecord("known", "orders", "per shard", "batch"))
    modules = {
        "dataset": MODULE.format(dataset="custmers", regions=[], name="one"),
        "region": MODULE.format(dataset="customers", regions=["XX"], name="two"),
        "conflict": MODULE.format(dataset="customers", regions=[], name="known"),
        "broken": SECRET,
        "missing": None,
    }
    words = {
        "dataset": "job one: dataset: the policy has no dataset 'custmers'; it has customers, orders",
        "region": "job two: regions: ",
        "conflict": "job known is known here as a batch job with a per shard scan of orders",
        "broken": "broken.py, line 8: ValueError: first line",
        "missing": "missing.py: there is no such file",
    }
    processes = {}
    for name, text in modules.items():
        file = tmp_path / f"{name}.py"
        if text is not None:
            file.write_text(text)
        processes[name] = await started(site, file)
    ends = dict(zip(processes, await asyncio.gather(*map(complaint, processes.values())), strict=True))
    for name, (code, said) in ends.items():
        assert code == 1, (name, said)
        assert words[name] in said, said
        # Besides the log, where it came to that.
        assert len([line for line in said.splitlines() if not line.startswith("{")]) == 1, said


@pytest.mark.timeout(90)
async def test_a_handler_that_never_ends_keeps_no_process_and_no_shard(site, tmp_path):
    await site.put("DE", *site.keys_in("DE", 0, 1))
    file, marker = tmp_path / "never.py", tmp_path / "began"
    file.write_text(NEVER.format(marker=str(marker)))
    process = await started(site, file)
    await until(lambda: asyncio.to_thread(lambda: marker.exists() or process.returncode is not None), "it begins")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(40):
        out, said = await process.communicate()
    assert process.returncode == 0, said.decode()[-2000:]
    assert b"handlers go on though they were cut short" in out + said
    assert b"the process ends without it" in out + said
    assert await site.idcs["fra"].hand.fetchval("SELECT seq FROM job_offsets WHERE job = 'stubborn'") == 0
    assert not (await site.client.list(site.keys.runners_of("fra"))).items
