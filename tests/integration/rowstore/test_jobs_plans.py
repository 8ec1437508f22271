"""No statement of jobs reads more than it must, also when it was planned while every table was empty."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rowstore.jobs import firings, offsets, registry
from rowstore.jobs.model import Advance
from rowstore.model import ShardEpoch
from rowstore.shard_tables import SHARD_TABLES
from tests.integration.rowstore.test_plans import nodes
from tests.support.job_stores import job_record, register

if TYPE_CHECKING:
    import asyncpg

    from tests.support.row_databases import RowDatabase

FENCES = 10_000
REGIONS = [f"R{number}" for number in range(100)]
FILL = """
INSERT INTO shard_fences (region_code, shard, epoch, mode, last_seq)
SELECT 'R' || r, s, 1, 'serving', 5 FROM generate_series(0, 99) AS r, generate_series(0, 99) AS s;
INSERT INTO job_offsets (job, region_code, shard, seq, runner)
SELECT 'j' || j, 'R' || r, s, 5, 'one.1'
FROM generate_series(0, 9) AS j, generate_series(0, 99) AS r, generate_series(0, 99) AS s;
INSERT INTO job_set_aside (job, region_code, shard, seq, key, attempts, error_class, error, is_replay_wanted)
SELECT 'j0', 'R' || r, 1, i, 'k', 1, 'E', 'e', true FROM generate_series(0, 99) AS r, generate_series(1, 10) AS i;
"""
ASIDE = 1000


async def plan_of(connection: asyncpg.Connection, statement: str) -> dict[str, Any]:
    """Runs a statement and undoes it; returns its plan, with what it has looked at."""
    transaction = connection.transaction()
    await transaction.start()
    (record,) = await connection.fetch("EXPLAIN (ANALYZE, FORMAT JSON) " + statement)
    await transaction.rollback()
    return json.loads(record[0])[0]["Plan"]


def looked_at(plan: dict[str, Any]) -> int:
    rows = 0
    for node in nodes(plan):
        each = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Join Filter", 0)
        rows += round(each * node["Actual Loops"])
    return rows


def literal(value: object) -> str:
    if isinstance(value, list):
        return "'{" + ",".join(map(str, value)) + "}'"
    return "NULL" if value is None else f"'{value}'"


WANTED = 100
SHARDS = [["R1"] * WANTED, list(range(WANTED)), [1] * WANTED]
NOW = datetime(2026, 11, 25, tzinfo=UTC)
ON_CLOSE = next(table.on_close for table in SHARD_TABLES if table.on_close)
WAITING = registry._WAITING.format(table="rows_customers")
CASES: dict[str, tuple[str, list[object], int]] = {
    # Statement, arguments, and rows that it may look at: those that it is about, in each step of its plan.
    "pending": (offsets._PENDING, ["j0", REGIONS, None, False, ["serving"]], 5 * FENCES),
    "pending for a firing": (offsets._PENDING, ["j0", REGIONS, NOW, False, ["serving"]], 5 * FENCES),
    "pending, global": (offsets._PENDING, ["j0", REGIONS, None, True, ["serving"]], 6 * FENCES),
    "the end of a firing": (firings._FINISH, ["j0", NOW, REGIONS, False], 6 * FENCES),
    "status": (registry._OFFSETS.format(waiting=WAITING), ["j0", REGIONS], 10 * FENCES),
    "claim": (offsets._CLAIM, ["j0", "two.1", *SHARDS], 40 * WANTED),
    "claim for the first time": (offsets._CLAIM, ["new", "two.1", *SHARDS], 40 * WANTED),
    "advance": (offsets._ADVANCE, ["j0", "R1", 1, 0, 1, 6, 1, 1, None, None, None], 30),
    "advance many": (
        offsets._ADVANCE_MANY,
        ["j0", *SHARDS[:2], [0] * WANTED, [1] * WANTED, [6] * WANTED, [1] * WANTED, 1, None, NOW, [5] * WANTED],
        30 * WANTED,
    ),
    "failure": (offsets._FAILED, ["j0", "R1", 1, 0, 1, "E"], 30),
    "close": (ON_CLOSE, ["R1", 1], 40),
    "replays wanted": (offsets._REPLAYS_WANTED, ["j0", REGIONS], 10 * ASIDE),
    "replays among": (offsets._REPLAYS_AMONG, ["j0", *SHARDS[:2], 10_000], 3 * ASIDE),
    "replay": (registry._REPLAY, ["j0", ""], 20 * ASIDE),
    "set aside": (registry._SET_ASIDE, ["j0", "", 10_000], 5 * ASIDE),
    "resume": (registry._RESUME, ["j0"], 2 * FENCES),
}


async def test_plans_made_on_empty_tables_serve_ten_thousand_shards(idc: RowDatabase) -> None:
    await idc.hand.execute("ALTER TABLE job_offsets SET (autovacuum_enabled = false)")
    async with idc.database.connection() as connection:
        executes: dict[str, str] = {}
        for name, (statement, arguments, _) in CASES.items():
            number = len(executes)
            executes[name] = f"EXECUTE planned_{number}({', '.join(map(literal, arguments))})"
            await connection.execute(f"PREPARE planned_{number} AS {statement}")
            await connection.execute(executes[name])
        await idc.hand.execute(FILL)
        for name, execute in executes.items():
            rows, most = looked_at(await plan_of(connection, execute)), CASES[name][2]
            assert rows <= most, f"{name} looks at {rows} rows"
        plans = await connection.fetch("SELECT generic_plans FROM pg_prepared_statements WHERE name LIKE 'planned%'")
    assert [record[0] for record in plans] == [2] * len(CASES)


async def test_ten_thousand_shards_are_claimed_and_moved_on(idc: RowDatabase) -> None:
    await register(idc, "j0")
    await idc.hand.execute(FILL)
    fetch = idc.database.fetch
    wanted = [ShardEpoch(code, shard, 1) for code in REGIONS[:20] for shard in range(100)]
    claims = await offsets.claim(fetch, "j0", "two.1", wanted)
    assert len(claims) == len(wanted)
    await offsets.advance_many(fetch, "j0", [(held, Advance(5, after=5)) for held in claims])
    assert await offsets.pending(fetch, "j0", REGIONS, firing=None, is_global=False) == []
    await idc.hand.execute("UPDATE shard_fences SET last_seq = 6 WHERE shard = 3 AND region_code LIKE 'R%'")
    pending = await offsets.pending(fetch, "j0", REGIONS, firing=None, is_global=False)
    assert [(it.region_code, it.shard) for it in pending] == sorted((code, 3) for code in REGIONS)
    assert (await registry.status(fetch, job_record("j0"), REGIONS)).shards == FENCES
