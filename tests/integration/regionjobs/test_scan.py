"""Pages of a shard's changes, read from a real PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policy.errors import ClaimLost, DatabaseUnavailable, InvalidJob
from policy.model import Column, ColumnType, Dataset, KeyType
from regionjobs.definition import Format
from regionjobs.scan import ShardScanner
from rowstore.jobs.model import Claim
from rowstore.schema import ensure_datasets
from tests.integration.rowstore.conftest import idc, postgres_server, prepared
from tests.support.row_databases import CUSTOMERS, ORDERS, delete, put

if TYPE_CHECKING:
    from regionjobs.rows import Page
    from tests.support.row_databases import RowDatabase

__all__ = ["idc", "postgres_server", "prepared"]

HELD = Claim("DE", 0, 1, 1, 0, 0)
"""A claim of shard 0."""


def scanner(idc: RowDatabase, dataset: Dataset = CUSTOMERS, *, with_deleted: bool = False) -> ShardScanner:
    return ShardScanner(idc.database, dataset, format=Format.ROWS, with_deleted=with_deleted)


def keys(page: Page) -> list[str | int]:
    return [page.key_at(index) for index in range(page.count)]


async def test_a_page_has_the_rows_above_a_sequence_in_their_order(idc):
    await idc.store.write(CUSTOMERS, [put(key, {"name": key, "spend": 7}) for key in ("b", "a", "c")])
    page = await scanner(idc).read(HELD, 1, 10)
    assert [(row.key, row.version, row["name"], row["spend"]) for row in page.rows] == [
        ("a", 2, "a", 7),
        ("c", 3, "c", 7),
    ]
    assert (page.count, page.last_seq, page.fence_seq, page.is_full, page.through_seq) == (2, 3, 3, False, 3)
    row = page.rows[0]
    assert (row.region_code, row.shard, row.is_deleted) == ("DE", 0, False)
    assert row.values == {"name": "a", "spend": 7}
    assert row.update_time == page.time_at(0) <= page.last_time
    assert (row.get("spend"), row.get("no such column"), row.get("no such column", 3)) == (7, None, 3)


async def test_a_row_that_changed_again_is_only_where_it_changed_last(idc):
    for spend in range(3):
        await idc.store.write(CUSTOMERS, [put("a", {"spend": spend}), put(f"b{spend}")])
    page = await scanner(idc).read(HELD, 0, 10)
    assert [(row.key, row.version) for row in page.rows] == [("b0", 2), ("b1", 4), ("a", 5), ("b2", 6)]


async def test_pages_of_any_size_meet_at_their_borders(idc):
    await idc.store.write(CUSTOMERS, [put(f"k{number}") for number in range(10)])
    for limit in (1, 3, 5, 10, 11):
        seen, after = [], 0
        while True:
            page = await scanner(idc).read(HELD, after, limit)
            seen += keys(page)
            after = page.through_seq
            assert page.is_full == (page.count == limit)
            if not page.is_full:
                break
        assert seen == [f"k{number}" for number in range(10)]
        assert after == 10


async def test_a_shard_without_changes_gives_an_empty_page(idc):
    page = await scanner(idc).read(HELD, 0, 10)
    assert (page.count, page.last_seq, page.fence_seq, page.is_full, page.last_time) == (0, 0, 0, False, None)
    assert list(page.rows) == []


async def test_changes_of_other_datasets_are_passed_over(idc):
    await idc.store.write(ORDERS, [put(number, {"order": "x"}) for number in range(5)])
    page = await scanner(idc).read(HELD, 0, 10)
    assert (page.count, page.last_seq, page.fence_seq, page.through_seq) == (0, 0, 5, 5)
    await idc.store.write(CUSTOMERS, [put("a")])
    await idc.store.write(ORDERS, [put(1)])
    page = await scanner(idc).read(HELD, 5, 10)
    assert (keys(page), page.last_seq, page.fence_seq, page.through_seq) == (["a"], 6, 7, 7)


async def test_other_shards_are_not_looked_at(idc):
    await idc.store.write(CUSTOMERS, [put("a"), put("b", shard=1)])
    assert keys(await scanner(idc).read(HELD, 0, 10)) == ["a"]
    assert keys(await scanner(idc).read(HELD._replace(shard=1), 0, 10)) == ["b"]


async def test_int64_keys_come_as_numbers_up_to_their_limits(idc):
    limits = [-(2**63), -1, 0, 2**63 - 1]
    await idc.store.write(ORDERS, [put(key, {"order": "x"}) for key in limits])
    page = await scanner(idc, ORDERS).read(HELD, 0, 10)
    assert sorted(keys(page)) == limits


async def test_deletions_are_passed_over_and_counted_where_they_are_not_wanted(idc):
    await idc.store.write(CUSTOMERS, [put("a", {"spend": 1}), put("b"), put("c")])
    await idc.store.write(CUSTOMERS, [delete("a"), delete("b")])
    page = await scanner(idc).read(HELD, 0, 10)
    assert (keys(page), page.last_seq, page.is_full, page.through_seq) == (["c"], 5, False, 5)
    page = await scanner(idc).read(HELD, 0, 2)
    assert (keys(page), page.last_seq, page.is_full, page.through_seq) == (["c"], 4, True, 4)
    page = await scanner(idc).read(HELD, 3, 1)
    assert (keys(page), page.last_seq, page.is_full, page.through_seq) == ([], 4, True, 4)


async def test_deletions_come_without_values_where_they_are_wanted(idc):
    await idc.store.write(CUSTOMERS, [put("a", {"spend": 1}), put("b", {"spend": 2})])
    await idc.store.write(CUSTOMERS, [delete("a")])
    page = await scanner(idc, with_deleted=True).read(HELD, 0, 10)
    assert [(row.key, row.is_deleted, row["spend"]) for row in page.rows] == [("b", False, 2), ("a", True, None)]


async def test_the_place_of_a_row_that_is_on_its_way_is_no_deletion(idc):
    await idc.hand.execute("UPDATE shard_fences SET last_seq = 1")
    await idc.hand.execute("INSERT INTO rows_customers VALUES ('DE', 'a', 0, 1, 'infinity', true)")
    page = await scanner(idc, with_deleted=True).read(HELD, 0, 10)
    assert (page.count, page.through_seq) == (0, 1)


@pytest.mark.parametrize("mode", ["importing", "closed"])
async def test_a_fence_that_lets_no_read_pass_costs_the_claim(idc, mode):
    await idc.store.write(CUSTOMERS, [put("a")])
    await idc.set_fence(mode=mode)
    for read in (scanner(idc).read(HELD, 0, 10), scanner(idc).read_again(HELD, [1])):
        with pytest.raises(ClaimLost, match="DE/0"):
            await read


async def test_another_epoch_or_a_shard_without_a_fence_costs_the_claim(idc):
    await idc.store.write(CUSTOMERS, [put("a")])
    for held in (
        HELD._replace(epoch=2),
        HELD._replace(epoch=0),
        HELD._replace(shard=99),
        HELD._replace(region_code="FR"),
    ):
        with pytest.raises(ClaimLost):
            await scanner(idc).read(held, 0, 10)


async def test_a_draining_shard_can_still_be_read(idc):
    await idc.store.write(CUSTOMERS, [put("a")])
    await idc.set_fence(mode="draining")
    assert keys(await scanner(idc).read(HELD, 0, 10)) == ["a"]


async def test_rows_are_found_again_as_long_as_they_have_not_changed(idc):
    await idc.store.write(CUSTOMERS, [put(key) for key in ("a", "b", "c", "d")])
    await idc.store.write(CUSTOMERS, [put("a"), delete("b"), put("e", shard=1)])
    page = await scanner(idc).read_again(HELD, [4, 3, 2, 1, 99])
    assert [(row.key, row.version) for row in page.rows] == [("c", 3), ("d", 4)]
    page = await scanner(idc, with_deleted=True).read_again(HELD, [6, 2])
    assert [(row.key, row.is_deleted) for row in page.rows] == [("b", True)]
    assert (await scanner(idc).read_again(HELD, [6])).count == 0
    assert (await scanner(idc).read_again(HELD, [])).count == 0


async def test_a_column_that_is_added_meanwhile_disturbs_no_scanner(idc):
    await idc.store.write(CUSTOMERS, [put("a", {"spend": 1})])
    old = scanner(idc)
    await old.read(HELD, 0, 10)
    wider = Dataset(CUSTOMERS.name, KeyType.STRING, {**CUSTOMERS.columns, "city": Column("city", ColumnType.STRING)})
    new = scanner(idc, wider)
    with pytest.raises(DatabaseUnavailable, match="not in the database yet"):
        await new.read(HELD, 0, 10)
    await ensure_datasets(idc.database, [wider])
    await idc.store.write(wider, [put("b", {"city": "Köln"})])
    assert [row.get("city") for row in (await new.read(HELD, 0, 10)).rows] == [None, "Köln"]
    assert [dict(row.values) for row in (await old.read(HELD, 0, 10)).rows] == [
        {"name": None, "spend": 1},
        {"name": None, "spend": None},
    ]


async def test_a_part_reaches_as_far_as_its_rows(idc):
    await idc.store.write(CUSTOMERS, [put(f"k{number}") for number in range(6)])
    await idc.store.write(ORDERS, [put(1)])
    page = await scanner(idc).read(HELD, 0, 10)
    first, second, nothing = page.part(0, 2), page.part(2, 6), page.part(3, 3)
    assert (keys(first), first.last_seq, first.is_full, first.through_seq) == (["k0", "k1"], 2, True, 2)
    assert (keys(second), second.last_seq, second.is_full, second.through_seq) == (
        ["k2", "k3", "k4", "k5"],
        6,
        False,
        7,
    )
    assert (nothing.count, nothing.through_seq) == (0, 3)
    assert keys(second.part(1, 3)) == ["k3", "k4"]


async def test_a_page_of_rows_has_no_table_and_says_so(idc):
    page = await scanner(idc).read(HELD, 0, 10)
    with pytest.raises(InvalidJob) as raised:
        _ = page.table
    assert raised.value.field_name == "format"


async def test_nothing_of_a_row_is_in_what_is_printed_of_it(idc):
    await idc.store.write(CUSTOMERS, [put("secret", {"name": "secret"})])
    page = await scanner(idc).read(HELD, 0, 10)
    assert "secret" not in repr(page) + repr(page.rows) + repr(page.rows[0])


async def test_rows_are_a_sequence(idc):
    await idc.store.write(CUSTOMERS, [put(f"k{number}") for number in range(4)])
    rows = (await scanner(idc).read(HELD, 0, 10)).rows
    assert [row.key for row in rows[1:3]] == ["k1", "k2"]
    assert rows[-1].key == "k3"
    assert len(rows) == 4
    assert "name" in rows[0]
    assert "key" not in rows[0]
