"""Values of every type, as rows and as Arrow tables, read from a real PostgreSQL: both tell the same."""

from __future__ import annotations

import asyncio
import math
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from policy.errors import ClaimLost, InvalidJob
from policy.model import Column, ColumnType, Dataset, KeyType
from regionjobs import scan
from regionjobs.definition import Format
from regionjobs.scan import ShardScanner
from rowstore.jobs.model import Claim
from rowstore.schema import ensure_datasets
from tests.integration.rowstore.conftest import idc, postgres_server, prepared
from tests.support.postgres import create_database
from tests.support.row_databases import delete, put, row_database

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.embedded.postgres import EmbeddedPostgres
    from tests.support.row_databases import RowDatabase

__all__ = ["idc", "postgres_server", "prepared"]

HELD = Claim("DE", 0, 1, 1, 0, 0)
# Columns named like things of the scanner, and like words of SQL: a policy may.
NAMES = {ColumnType.STRING: "last_seq", ColumnType.INT64: "part0", ColumnType.BOOL: "order", ColumnType.BYTES: "page"}
NAMES = {kind: NAMES.get(kind, kind.value) for kind in ColumnType}
COLUMNS = {name: Column(name, kind) for kind, name in NAMES.items()}
BY_TEXT = Dataset("by_text", KeyType.STRING, COLUMNS)
BY_NUMBER = Dataset("by_number", KeyType.INT64, COLUMNS)

STRANGE: Mapping[ColumnType, list[object]] = {
    ColumnType.STRING: ["", "'", "\\", "\x01", "ÿ", "äöü\u2028", "a\nb", "北京", "🗺️", "x" * 10_000],
    ColumnType.JSON: ["{}", '{"b": 1,  "a": null}', "null", '""', '"\\u00ff"', "[1.0]"],
    ColumnType.INT64: [0, 1, -1, -(2**63), 2**63 - 1],
    ColumnType.DOUBLE: [0.0, -0.0, math.nan, math.inf, -math.inf, 0.1 + 0.2, 5e-324, 1.7976931348623157e308],
    ColumnType.DECIMAL: [Decimal("1.0"), Decimal("1.00"), Decimal("NaN"), Decimal("-0.5"), Decimal(10) ** 40],
    ColumnType.BOOL: [True, False],
    ColumnType.BYTES: [b"", b"\0", b"\0\0\xff\0", b"\xff", b"\\x00"],
    ColumnType.TIMESTAMP: [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1999, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        datetime(2000, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
}


def told(values: Mapping[str, object], *, in_arrow: bool) -> dict[str, object]:
    """Values as both formats should tell them, so that also NaN is equal to itself."""
    made = {}
    for kind, name in NAMES.items():
        value = values.get(name)
        if isinstance(value, float):
            value = repr(value)
        elif kind is ColumnType.DECIMAL and value is not None and not in_arrow:
            value = format(value, "f")
        made[name] = value
    return made


async def read_both(
    idc: RowDatabase, dataset: Dataset, *, limit: int = 1000, after: int = 0, with_deleted: bool = False
):
    """One page in both formats, which must be equal; returns its rows as dictionaries."""
    rows, table = [
        await ShardScanner(idc.database, dataset, format=kind, with_deleted=with_deleted).read(HELD, after, limit)
        for kind in (Format.ROWS, Format.ARROW)
    ]
    for name in ("count", "last_seq", "fence_seq", "is_full", "through_seq", "last_time", "region_code", "shard"):
        assert getattr(rows, name) == getattr(table, name)
    for index in range(rows.count):
        assert rows.seq_at(index) == table.seq_at(index)
        assert rows.key_at(index) == table.key_at(index)
        assert rows.time_at(index) == table.time_at(index)
    table.table.validate(full=True)
    from_rows = [
        {
            "region_code": row.region_code,
            "key": row.key,
            "shard": row.shard,
            "seq": row.version,
            "update_time": row.update_time,
            "deleted": row.is_deleted,
            **told(row.values, in_arrow=False),
        }
        for row in rows.rows
    ]
    from_table = [{**row, **told(row, in_arrow=True)} for row in table.table.to_pylist()]
    assert from_rows == from_table
    return from_rows


@pytest.mark.parametrize("kind", ColumnType)
async def test_values_come_out_as_they_were_put_in_and_nulls_as_nulls(idc, kind):
    await ensure_datasets(idc.database, [BY_TEXT])
    values = [None, *STRANGE[kind], None, STRANGE[kind][0], None]
    await idc.store.write(BY_TEXT, [put(f"k{n:02}", {NAMES[kind]: value}) for n, value in enumerate(values)])
    read = await read_both(idc, BY_TEXT)
    assert [row["key"] for row in read] == [f"k{n:02}" for n in range(len(values))]
    assert [row[NAMES[kind]] for row in read] == [
        told({NAMES[kind]: value}, in_arrow=False)[NAMES[kind]] for value in values
    ]
    assert all(row[name] is None for row in read for name in NAMES.values() if name != NAMES[kind])


async def test_infinite_times_are_told_alike(idc):
    await ensure_datasets(idc.database, [BY_TEXT])
    await idc.store.write(BY_TEXT, [put("first"), put("last")])
    await idc.hand.execute(
        "UPDATE rows_by_text SET timestamp = CASE key WHEN 'last' THEN 'infinity' ELSE '-infinity' END::timestamptz"
    )
    assert [row["timestamp"].year for row in await read_both(idc, BY_TEXT)] == [1, 9999]


async def test_a_page_without_rows_is_a_table_of_the_same_schema(idc):
    await ensure_datasets(idc.database, [BY_TEXT])
    scanner = ShardScanner(idc.database, BY_TEXT, format=Format.ARROW, with_deleted=False)
    empty = await scanner.read(HELD, 0, 10)
    await idc.store.write(BY_TEXT, [put("a")])
    assert empty.table.schema == (await scanner.read(HELD, 0, 10)).table.schema
    assert (empty.count, empty.through_seq) == (0, 0)
    assert empty.table.schema.field("timestamp").type == pa.timestamp("us", tz="UTC")


async def test_a_table_says_where_each_row_is_and_when_it_changed(idc):
    await ensure_datasets(idc.database, [BY_NUMBER])
    await idc.store.write(BY_NUMBER, [put(-(2**63)), put(2**63 - 1)])
    scanner = ShardScanner(idc.database, BY_NUMBER, format=Format.ARROW, with_deleted=False)
    table = (await scanner.read(HELD, 0, 10)).table
    assert table.select(["region_code", "key", "shard", "seq", "deleted"]).to_pylist() == [
        {"region_code": "DE", "key": -(2**63), "shard": 0, "seq": 1, "deleted": False},
        {"region_code": "DE", "key": 2**63 - 1, "shard": 0, "seq": 2, "deleted": False},
    ]
    found = await scanner.read_again(HELD, [2])
    assert found.table.column("key").to_pylist() == [2**63 - 1]


async def test_a_fence_that_lets_no_read_pass_costs_the_claim_of_a_table_too(idc):
    await ensure_datasets(idc.database, [BY_TEXT])
    await idc.store.write(BY_TEXT, [put("a")])
    scanner = ShardScanner(idc.database, BY_TEXT, format=Format.ARROW, with_deleted=False)
    await idc.set_fence(mode="closed")
    for read in (scanner.read(HELD, 0, 10), scanner.read_again(HELD, [1])):
        with pytest.raises(ClaimLost):
            await read


def test_arrow_without_its_libraries_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "regionjobs.arrow", None)
    scan._reading.cache_clear()
    with pytest.raises(InvalidJob, match='extra "arrow"') as raised:
        ShardScanner(None, BY_TEXT, format=Format.ARROW, with_deleted=False)
    assert raised.value.field_name == "format"


# ---- any rows -------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
VALUES = {
    ColumnType.STRING: TEXT,
    ColumnType.INT64: st.integers(-(2**63), 2**63 - 1),
    ColumnType.DOUBLE: st.floats(),
    ColumnType.BOOL: st.booleans(),
    ColumnType.BYTES: st.binary(max_size=6),
    ColumnType.TIMESTAMP: st.datetimes(timezones=st.just(UTC)),
    ColumnType.DECIMAL: st.decimals(-(10**12), 10**12, places=4),
    ColumnType.JSON: st.sampled_from(["{}", "null", '"ÿ"', '{"a": [1, 2.50]}']),
}
ROWS = st.fixed_dictionaries({}, optional={NAMES[kind]: st.none() | values for kind, values in VALUES.items()})
CHANGES = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | ROWS), max_size=12)


def test_any_page_tells_the_same_in_both_formats(postgres_server: EmbeddedPostgres, prepared: str) -> None:
    with asyncio.Runner() as runner:
        url = runner.run(create_database(postgres_server, prepared))

        async def play(changes, limit, after, *, with_deleted):
            async with row_database(url) as idc:
                await ensure_datasets(idc.database, [BY_TEXT])
                await idc.hand.execute("DELETE FROM rows_by_text")
                await idc.hand.execute("UPDATE shard_fences SET last_seq = 0")
                for key, values in changes:
                    write = delete(key) if values is None else put(key, values)
                    await idc.store.write(BY_TEXT, [write])
                await read_both(idc, BY_TEXT, limit=limit, after=after, with_deleted=with_deleted)

        @settings(
            max_examples=60,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
        )
        @given(CHANGES, st.integers(1, 13), st.integers(0, 12), st.booleans())
        def tell(changes, limit, after, with_deleted):
            runner.run(play(changes, limit, after, with_deleted=with_deleted))

        tell()
