"""Pages in key order, judged by the fences of all their shards."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.filter import parse_filter
from rowstore.model import ListPage, ShardEpoch, StoredRow
from rowstore.schema import ensure_datasets
from tests.support.row_databases import CUSTOMERS, ORDERS, RowDatabase, delete, get, put

SHARDS = [ShardEpoch("DE", shard, 1) for shard in range(4)]


async def keys_of(idc: RowDatabase, text: str, dataset: Dataset = CUSTOMERS) -> list[str | int]:
    page = await idc.store.list_page(dataset, SHARDS, after=None, condition=parse_filter(text, dataset), limit=100)
    return [row.key for row in page.rows]


async def test_pages_follow_each_other_in_key_order_over_all_shards(idc: RowDatabase) -> None:
    keys = ["A", "B", "a", "b", "ä", "\uffff", "\N{PILE OF POO}"]
    await idc.store.write(CUSTOMERS, [put(key, {"name": key}, shard=i % 4) for i, key in enumerate(keys)])
    await idc.store.write(CUSTOMERS, [delete("gone"), put("other", region="DE", shard=3)])
    found: list[str | int] = []
    after: str | int | None = None
    more = True
    while more:
        page = await idc.store.list_page(CUSTOMERS, SHARDS, after=after, condition=None, limit=3)
        assert 0 < len(page.rows) <= 3
        found += [row.key for row in page.rows]
        after, more = page.rows[-1].key, page.more
    # By code points, as UTF-8 and Python compare.
    assert found == sorted([*keys, "other"])


async def test_int64_keys_are_listed_by_number(idc: RowDatabase) -> None:
    await idc.store.write(ORDERS, [put(key, shard=0) for key in (10, 9, -1, 100)])
    page = await idc.store.list_page(ORDERS, SHARDS, after=-1, condition=None, limit=2)
    assert ([row.key for row in page.rows], page.more) == ([9, 10], True)


async def test_a_page_that_ends_with_the_last_row_says_so(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("a"), put("b")])
    page = await idc.store.list_page(CUSTOMERS, SHARDS, after=None, condition=None, limit=2)
    assert (len(page.rows), page.more) == (2, False)


async def test_only_the_shards_asked_for_are_listed(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put(f"k{i}", shard=i) for i in range(4)])
    page = await idc.store.list_page(CUSTOMERS, [SHARDS[1], SHARDS[3]], after=None, condition=None, limit=9)
    assert [row.key for row in page.rows] == ["k1", "k3"]
    assert await idc.store.list_page(CUSTOMERS, [], after=None, condition=None, limit=9) == ListPage((), more=False)


@pytest.mark.parametrize(("mode", "epoch"), [("closed", 1), ("importing", 1), ("serving", 2)])
async def test_law_l3_a_page_without_one_of_its_shards_is_no_page(idc: RowDatabase, mode: str, epoch: int) -> None:
    await idc.store.write(CUSTOMERS, [put(f"k{i}", shard=i) for i in range(4)])
    await idc.set_fence(2, mode=mode, epoch=epoch)
    page = await idc.store.list_page(CUSTOMERS, [*SHARDS, ShardEpoch("DE", 9, 1)], after=None, condition=None, limit=9)
    assert page == ListPage((), more=False, missed=(SHARDS[2], ShardEpoch("DE", 9, 1)))


async def test_a_draining_shard_is_listed(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("k")])
    await idc.set_fence(mode="draining")
    page = await idc.store.list_page(CUSTOMERS, SHARDS, after=None, condition=None, limit=9)
    (row,) = await idc.store.read(CUSTOMERS, [get("k")])
    assert isinstance(row, StoredRow)
    assert page.rows == (row,)


async def test_filters_mean_what_they_say(idc: RowDatabase) -> None:
    await idc.store.write(
        CUSTOMERS,
        [
            put("a", {"name": "Li", "spend": 1}),
            put("b", {"name": 'Li\'s "x" \\', "spend": -5}),
            put("c", {"name": None, "spend": 7}),
            put("d", {"name": "Zoe"}),
        ],
    )
    assert await keys_of(idc, 'name = "Li"') == ["a"]
    assert await keys_of(idc, "name = 'Li\\'s \"x\" \\\\'") == ["b"]
    assert await keys_of(idc, 'name != "Li"') == ["b", "c", "d"]
    assert await keys_of(idc, 'NOT name = "Li"') == ["b", "c", "d"]
    assert await keys_of(idc, "name = null OR spend = null") == ["c", "d"]
    assert await keys_of(idc, "name != null AND spend != null") == ["a", "b"]
    assert await keys_of(idc, "spend >= -5 AND spend < 7") == ["a", "b"]
    assert await keys_of(idc, "NOT (spend >= -5 AND spend < 7)") == ["c", "d"]
    assert await keys_of(idc, 'name > "M" OR (spend <= 1 AND NOT spend = 1)') == ["b", "d"]
    assert await keys_of(idc, 'name = "\'; DROP TABLE rows_customers; --"') == []


async def test_every_type_that_compares_is_compared(idc: RowDatabase) -> None:
    columns = {
        "at": ColumnType.TIMESTAMP,
        "amount": ColumnType.DECIMAL,
        "ratio": ColumnType.DOUBLE,
        "vip": ColumnType.BOOL,
        "photo": ColumnType.BYTES,
        "extra": ColumnType.JSON,
    }
    dataset = Dataset("wide", KeyType.STRING, {name: Column(name, kind) for name, kind in columns.items()})
    await ensure_datasets(idc.database, [dataset])
    row = {
        "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        "amount": Decimal("10.50"),
        "ratio": 0.5,
        "vip": True,
        "photo": b"x",
        "extra": "{}",
    }
    await idc.store.write(dataset, [put("k", row), put("empty")])
    for text in (
        'at = "2026-01-02T03:04:05.000006Z"',
        'at >= "2026-01-02T11:04:05+08:00"',
        'amount = 10.5 AND amount < "10.51"',
        "ratio = 5e-1",
        "vip = true AND vip != false",
        "photo != null AND extra != null",
    ):
        assert await keys_of(idc, text, dataset) == ["k"], text
