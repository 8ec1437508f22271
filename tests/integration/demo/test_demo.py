"""The demo as a user runs it, and its proof on databases that hold a row in the wrong place."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg

import regiongate
from policy.compile import compile_policy
from policy.loading import load_policy_files
from regiongate.demo import placement
from regiongate.demo.load import write_places
from regiongate.demo.places import DATASET, load_places
from regiongate.demo.run import by_entry
from regiongate.demo.stack import policy_file
from rowstore.tables import table_name
from tests.support.stack import ROOT

if TYPE_CHECKING:
    from tests.support.stack import RunningStack

POLICY = compile_policy(load_policy_files(policy_file()).document, 1)


def test_the_demo_ends_with_every_row_where_its_law_says():
    command = [sys.executable, "-m", "regiongate.cli.main", "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "69,472" in done.stdout
    assert "All rows lie where their law says." in done.stdout
    for rule in ("eu-support", "china", "asia-research"):
        assert rule in done.stdout
    assert "sin gateway" in done.stdout, "the trace crosses from sin"
    assert "db.read" in done.stdout


async def test_law_l1_a_row_in_the_wrong_database_is_found(stack: RunningStack):
    places = load_places()[::1500]
    for idc, some in by_entry(POLICY, places).items():
        async with regiongate.connect(stack.gateway(idc)) as client:
            await write_places(client, some, lambda _: None)
    urls = {idc: entry.database for idc, entry in stack.idcs.items()}
    right = placement.judge(POLICY, places, await placement.read_databases(urls, DATASET))
    assert right.wrong == []
    connection = await asyncpg.connect(urls["sha"], timeout=10)
    try:
        table = table_name(DATASET)
        await connection.execute(f"INSERT INTO {table} VALUES ('DE', 'misplaced', 0, 1, now(), false)")
        wrong = placement.judge(POLICY, places, await placement.read_databases(urls, DATASET))
        assert "1 rows of DE lie in sha, where its law forbids them" in wrong.wrong
        await connection.execute(f"DELETE FROM {table} WHERE key = 'misplaced'")
    finally:
        await connection.close()
