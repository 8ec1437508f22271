"""No plan hangs on statistics: each statement looks rows up by index, also when it was planned on empty tables.

Autovacuum is off here, so nothing is ever analysed unless a test does it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from rowstore import listing, read_statements, write_statements
from rowstore.filter import parse_filter
from rowstore.tables import dataset_table
from tests.support.row_databases import CUSTOMERS, RowDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rowstore.compiling import Statement

ROWS = 100_000
TABLE = dataset_table(CUSTOMERS)
STORED = {"rows_customers", "shard_fences", "write_requests"}
SPEND = parse_filter('spend > 5 AND name != "x"', CUSTOMERS)
READS: dict[str, Statement] = {
    "read_one": read_statements.read_one(TABLE),
    "read_many": read_statements.read_many(TABLE),
    "diagnose": read_statements.diagnose(TABLE, "customers"),
    "first page": listing.page_statement(TABLE, None, 0, has_after=False),
    "next page": listing.page_statement(TABLE, None, 0, has_after=True),
    "filtered page": listing.page_statement(TABLE, SPEND.shape, len(SPEND.arguments), has_after=True),
}
WRITES: dict[str, Statement] = {
    "upsert_forgetful": write_statements.upsert_forgetful(TABLE),
    "upsert": write_statements.upsert(TABLE, "customers"),
    "insert_absent": write_statements.insert_absent(TABLE, "customers"),
    "update_present": write_statements.update_present(TABLE, "customers"),
}
FILL = f"""
INSERT INTO shard_fences (region_code, shard, epoch, mode)
SELECT 'R' || r, s, 1, 'serving' FROM generate_series(1, 200) r, generate_series(0, 15) s;
INSERT INTO rows_customers SELECT 'DE', 'k' || i, i % 4, i / 4, now(), false, 'n', i FROM generate_series(1, {ROWS}) i;
INSERT INTO write_requests SELECT 'DE', i % 4, 'r' || i, 'customers', 0, now(), ARRAY['k' || i], ARRAY[i / 4]
FROM generate_series(1, {ROWS}) i;
"""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def explain(idc: RowDatabase, statement: Statement) -> list[dict[str, Any]]:
    """The generic plan, as the gateway's connections make it."""
    count = max(int(number) for number in re.findall(r"\$(\d+)", statement.sql))
    async with idc.database.connection() as connection:
        await connection.execute("DEALLOCATE ALL")
        await connection.execute("PREPARE planned AS " + statement.sql)
        (record,) = await connection.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE planned({', '.join(['NULL'] * count)})")
    (document,) = json.loads(record[0])
    return list(nodes(document["Plan"]))


def check_plan(plan: Sequence[dict[str, Any]], name: str) -> None:
    for node in plan:
        kind, table = node["Node Type"], node.get("Relation Name")
        if table in STORED and kind != "ModifyTable":
            assert kind == "Index Scan", f"{name} reads {table} by {kind}"
            expected = f"{table}_pkey"
            assert node["Index Name"] == expected, f"{name} reads {table} by {node['Index Name']}"
        if kind == "Nested Loop":
            # The inner side is looked up for each row of the outer: by key, or it is a row or so.
            inner = list(nodes(node["Plans"][1]))
            assert any(n["Node Type"] in ("Index Scan", "Limit", "Aggregate") for n in inner), f"{name} multiplies rows"
        assert kind != "Sort", f"{name} sorts"


@pytest.mark.parametrize("state", ["empty", "empty and analysed", "full, never analysed", "full and analysed"])
async def test_each_statement_has_one_plan_whatever_the_statistics(idc: RowDatabase, state: str) -> None:
    for table in STORED:
        await idc.hand.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    if state.startswith("full"):
        await idc.hand.execute(FILL)
    if state.endswith("analysed") and "never" not in state:
        await idc.hand.execute("ANALYZE")
    for name, statement in {**READS, **WRITES}.items():
        check_plan(await explain(idc, statement), name)


async def test_a_plan_made_on_empty_tables_reads_no_more_than_it_must_when_they_are_full(idc: RowDatabase) -> None:
    keys = ",".join(f"k{i}" for i in range(1, 101))
    shards = ",".join(str(i % 4) for i in range(1, 101))
    arguments = (f"'{{{'DE,' * 99}DE}}'", f"'{{{shards}}}'", f"'{{{'1,' * 99}1}}'", f"'{{{keys}}}'")
    statement = read_statements.read_many(TABLE)
    execute = f"EXECUTE reading({', '.join(statement.arrange(arguments))})"
    async with idc.database.connection() as connection:
        await connection.execute("PREPARE reading AS " + statement.sql)
        await connection.execute(execute)
        await idc.hand.execute(FILL)
        (record,) = await connection.fetch("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + execute)
        plan = json.loads(record[0])[0]["Plan"]
        plans = await connection.fetchval("SELECT generic_plans FROM pg_prepared_statements WHERE name = 'reading'")
    assert plans == 2
    assert plan["Actual Rows"] == 100
    # For each key a few pages of two indexes and two tables.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100 * 12
