"""The demo as a user runs it, and its proofs on databases that do not hold what they should."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import asyncpg
import pytest

import regiongate
from policy.compile import compile_policy
from policy.loading import load_policy_files
from regiongate.demo import placement
from regiongate.demo.load import write_places
from regiongate.demo.places import DATASET, load_places
from regiongate.demo.remains import count_everywhere
from regiongate.demo.run import by_entry
from regiongate.demo.stack import policy_file
from regiongate.demo.traffic import Callers, Traffic
from rowstore.tables import table_name
from tests.support.stack import ROOT

if TYPE_CHECKING:
    from tests.support.stack import RunningStack

POLICY = compile_policy(load_policy_files(policy_file()).document, 1)


@pytest.mark.timeout(240)
def test_the_demo_ends_with_every_row_where_its_law_says():
    command = [sys.executable, "-m", "regiongate.cli.main", "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "69,472" in done.stdout
    assert "All rows lie where their law says." in done.stdout
    for rule in ("eu-support", "china", "asia-research"):
        assert rule in done.stdout
    assert "sin gateway" in done.stdout, "the trace crosses from sin"
    assert "db.read" in done.stdout
    for seen in ("+  lon: {jurisdiction: UK}", "moved: 5 shards of GB from fra to lon", "move.purging", "job.batch"):
        assert seen in done.stdout
    rollout = re.findall(r"^trace ([0-9a-f]{32})", done.stdout, re.MULTILINE)[1]
    assert f"linked to trace {rollout[:8]}" in done.stdout
    facts = {
        words[0]: words[-1] for line in done.stdout.splitlines() if len(words := re.split(r"\s{2,}", line.strip())) > 1
    }
    assert facts["rows left behind in the EU"] == "none, in any table"
    assert facts["acknowledged writes lost, stale reads"] == "none, none"
    assert facts["calls during the moves"].endswith("errors: none")
    assert facts["shards moved to lon"].startswith("32, ")
    assert "all sound" in facts["audit trail"]
    assert facts["figures counted by the job"] == "245 countries, all equal, to the unit"
    handled, runs = map(int, re.findall(r"\d+", facts["changes that it handled"].replace(",", "")))
    assert handled > 69_472
    assert runs > len(POLICY.idcs), "the rollout ends runs, and others follow them"


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


async def test_law_l1_what_stayed_behind_is_found_in_whatever_table(stack: RunningStack):
    urls = {idc: entry.database for idc, entry in stack.idcs.items()}
    assert not any((await count_everywhere(urls, ["SX"])).values())
    connection = await asyncpg.connect(urls["ams"], timeout=10)
    try:
        table = table_name(DATASET)
        await connection.execute(f"INSERT INTO {table} VALUES ('SX', 'left', 0, 1, now(), true)")
        await connection.execute("CREATE TABLE forgotten AS SELECT 'SX' AS region_code, 1 AS anything")
        assert (await count_everywhere(urls, ["SX"]))["ams"] == {"forgotten": 1, table: 1}
    finally:
        await connection.execute(f"DROP TABLE IF EXISTS forgotten; DELETE FROM {table} WHERE key = 'left'")
        await connection.close()


async def test_law_l3_a_lost_write_and_a_stale_read_are_seen(stack: RunningStack):
    places = [place for place in load_places() if place.region_code == "JP"][:100]
    entries = {idc: entry.gateway for idc, entry in stack.idcs.items()}
    async with regiongate.connect(entries["sin"]) as client:
        await write_places(client, places, lambda _: None)
    traffic = Traffic(places)
    async with asyncio.timeout(60), traffic.running(entries, (Callers("sin", "JP", 1, 1),)) as seen:
        while seen.writes["JP"] < 100 or not seen.reads["JP"]:  # noqa: ASYNC110 (counters, not events)
            await asyncio.sleep(0.01)
        assert not seen.stale
        connection = await asyncpg.connect(stack.idcs["sin"].database, timeout=10)
        try:
            while not seen.stale:
                # As a database would that was set back to before the writes.
                await connection.execute(f"UPDATE {table_name(DATASET)} SET population = 0 WHERE region_code = 'JP'")
        finally:
            await connection.close()
    assert not seen.errors
    assert await traffic.lost(entries) > 0
