"""What is in a row arrives as it was, and digests tell rows apart."""

from __future__ import annotations

import math
from decimal import Decimal

from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.schema import ensure_datasets
from tests.support.row_databases import STEP, MovePair, put

EVERYTHING = Dataset("everything", KeyType.STRING, {kind.value: Column(kind.value, kind) for kind in ColumnType})


async def test_values_of_every_type_arrive_as_they_were(pair: MovePair) -> None:
    strange = {
        "string": ["", "'", '"', "\\", ",name=", "äöü\u2028", "a\nb"],
        "json": ["{}", '{"b": 1,  "a": null}', "null", '""', "[1.0]"],
        "int64": [0, -(2**63), 2**63 - 1],
        "double": [0.0, -0.0, math.nan, math.inf, -math.inf, 0.1 + 0.2, 5e-324],
        "decimal": [Decimal("1.0"), Decimal("1.00"), Decimal("NaN"), Decimal("-0.5"), Decimal(10) ** 40],
        "bool": [True, False],
        "bytes": [b"", b"\x00\xff", b"\\x00"],
    }
    reordered = Dataset("everything", KeyType.STRING, dict(reversed(EVERYTHING.columns.items())))
    await ensure_datasets(pair.source.database, [EVERYTHING])
    await ensure_datasets(pair.target.database, [reordered])
    writes = [
        put(f"{name}{number}", {name: value})
        for name, values in strange.items()
        for number, value in enumerate([*values, None])
    ]
    await pair.source.store.write(EVERYTHING, writes)
    await pair.source.hand.execute("UPDATE rows_everything SET timestamp = 'infinity' WHERE key = 'bool0'")
    await pair.source.hand.execute("UPDATE rows_everything SET timestamp = '-infinity' WHERE key = 'bool1'")
    await pair.sender.begin_export(STEP)
    await pair.copy()
    await pair.source.store.write(EVERYTHING, writes)
    progress = await pair.close_and_copy()
    assert progress.digest == await pair.sender.digest(STEP)
    columns = ", ".join(f'"{name}"::text' for name in ("key", *EVERYTHING.columns))
    rows = [
        await idc.hand.fetch(f"SELECT {columns} FROM rows_everything ORDER BY key")
        for idc in (pair.source, pair.target)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == len(writes)


async def test_digests_tell_rows_apart_that_look_alike(pair: MovePair) -> None:
    await ensure_datasets(pair.source.database, [EVERYTHING])
    seen = set()
    for values in (
        {},
        {"string": ""},
        {"string": "null"},
        {"string": "',int64=1"},
        {"int64": 1},
        {"double": 0.0},
        {"double": -0.0},
        {"decimal": Decimal("1.0")},
        {"decimal": Decimal("1.00")},
        {"json": '{"a":1}'},
        {"json": '{"a": 1}'},
        {"bytes": b""},
        {"bytes": b"a"},
        {"bool": False},
    ):
        await pair.source.store.write(EVERYTHING, [put("k", values)])
        await pair.source.hand.execute("UPDATE rows_everything SET seq = 1, update_time = '2020-01-01Z'")
        seen.add(await pair.sender.digest(STEP))
    assert len(seen) == 14
    one = await pair.sender.digest(STEP)
    more = Column("more", ColumnType.STRING)
    await ensure_datasets(
        pair.source.database, [Dataset("everything", KeyType.STRING, {**EVERYTHING.columns, "more": more})]
    )
    assert await pair.sender.digest(STEP) == one
