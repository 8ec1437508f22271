"""What a write does, and what it answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from policy.model import Column, ColumnType, Dataset, KeyType
from rowstore.model import FenceMiss, FenceMode, Missing, ShardEpoch, StoredRow, VersionMismatch, Written
from rowstore.schema import ensure_datasets
from tests.support.row_databases import CUSTOMERS, ORDERS, RowDatabase, delete, get, put


async def test_a_written_row_is_read_back_with_its_version_and_time(idc: RowDatabase) -> None:
    (written,) = await idc.store.write(CUSTOMERS, [put("k", {"name": "Li", "spend": 5})])
    (row,) = await idc.store.read(CUSTOMERS, [get("k")])
    assert isinstance(written, Written)
    assert row == StoredRow("DE", "k", written.version, written.update_time, {"name": "Li", "spend": 5})


async def test_a_put_writes_the_whole_row(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("k", {"name": "Li", "spend": 5})])
    await idc.store.write(CUSTOMERS, [put("k", {"spend": 6})])
    (row,) = await idc.store.read(CUSTOMERS, [get("k")])
    assert isinstance(row, StoredRow)
    assert row.values == {"name": None, "spend": 6}


async def test_every_type_comes_back_as_it_was_written(idc: RowDatabase) -> None:
    values = {
        ColumnType.STRING: "Zürich \N{SNOWMAN} 'x' \\",
        ColumnType.INT64: -(1 << 63),
        ColumnType.DOUBLE: -0.1,
        ColumnType.BOOL: True,
        ColumnType.BYTES: b"\x00\xff",
        ColumnType.TIMESTAMP: datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        ColumnType.DECIMAL: Decimal("-12345678901234567890.1200"),
        ColumnType.JSON: '{"b": 1,  "a": [1e400, "\\u0000"], "b": 2}',
    }
    dataset = Dataset("kinds", KeyType.STRING, {f"{kind}_column": Column(f"{kind}_column", kind) for kind in values})
    await ensure_datasets(idc.database, [dataset])
    row = {f"{kind}_column": value for kind, value in values.items()}
    await idc.store.write(dataset, [put("full", row), put("empty")])
    full, empty = await idc.store.read(dataset, [get("full"), get("empty")])
    assert isinstance(full, StoredRow)
    assert isinstance(empty, StoredRow)
    assert full.values == row
    assert str(full.values["decimal_column"]) == "-12345678901234567890.1200"
    assert empty.values == dict.fromkeys(row)


@pytest.mark.parametrize("key", [0, -(1 << 63), (1 << 63) - 1])
async def test_int64_keys_are_keys(idc: RowDatabase, key: int) -> None:
    await idc.store.write(ORDERS, [put(key, {"order": "x"}, request_id="r")])
    (replay,) = await idc.store.write(ORDERS, [put(key, {"order": "y"}, request_id="r")])
    assert isinstance(replay, Written)
    assert replay.is_replay
    (row,) = await idc.store.read(ORDERS, [get(key)])
    assert isinstance(row, StoredRow)
    assert (row.key, row.values) == (key, {"order": "x"})


async def test_a_delete_leaves_a_tombstone_without_values(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("k", {"name": "Li"})])
    (gone,) = await idc.store.write(CUSTOMERS, [delete("k")])
    assert isinstance(gone, Written)
    assert await idc.store.read(CUSTOMERS, [get("k")]) == [Missing()]
    record = await idc.hand.fetchrow("SELECT seq, deleted, name FROM rows_customers WHERE key = 'k'")
    assert tuple(record) == (gone.version, True, None)


async def test_deleting_what_is_not_there_succeeds(idc: RowDatabase) -> None:
    (gone,) = await idc.store.write(CUSTOMERS, [delete("k")])
    assert isinstance(gone, Written)


async def test_outcomes_are_in_the_order_of_the_writes_whatever_their_kinds(idc: RowDatabase) -> None:
    (there,) = await idc.store.write(CUSTOMERS, [put("there")])
    assert isinstance(there, Written)
    outcomes = await idc.store.write(
        CUSTOMERS,
        [
            put("z", shard=1),
            put("there", if_version=there.version),
            put("new", if_version=0),
            put("elsewhere", shard=9),
            put("old", epoch=2),
            put("a"),
            put("absent", if_version=7),
            delete("b", shard=2),
        ],
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Written, Written, Written, FenceMiss, FenceMiss, Written, VersionMismatch, Written]
    keys = ["z", "there", "new", "a", "b"]
    seqs = dict(await idc.hand.fetch("SELECT key, seq FROM rows_customers"))
    versions = {key: o.version for key, o in zip(keys, (o for o in outcomes if isinstance(o, Written)), strict=True)}
    assert seqs == versions


async def test_sequences_of_a_batch_are_dense_from_the_last_one(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("first")])
    await idc.store.write(CUSTOMERS, [put(f"k{i}") for i in range(10)])
    assert [row["seq"] for row in await idc.hand.fetch("SELECT seq FROM rows_customers ORDER BY seq")] == list(
        range(1, 12)
    )
    (fence,) = [fence for fence in await idc.store.fences.get() if fence.shard == 0]
    assert fence.last_seq == 11


@pytest.mark.parametrize(
    ("mode", "epoch"), [("importing", 1), ("draining", 1), ("closed", 1), ("serving", 2), ("serving", 0)]
)
@pytest.mark.parametrize("if_version", [None, 0, 1])
async def test_law_l2_a_fence_that_does_not_let_pass_lets_nothing_be_written(
    idc: RowDatabase, mode: str, epoch: int, if_version: int | None
) -> None:
    await idc.store.write(CUSTOMERS, [put("k", {"spend": 1})])
    await idc.set_fence(mode=mode, epoch=epoch)
    key = "new" if if_version == 0 else "k"
    outcomes = await idc.store.write(
        CUSTOMERS, [put(key, {"spend": 2}, if_version=if_version, request_id="r"), put("free", shard=1)]
    )
    assert outcomes[0] == FenceMiss(FenceMode(mode), epoch)
    assert isinstance(outcomes[1], Written)
    rows = await idc.hand.fetch("SELECT key, spend FROM rows_customers WHERE shard = 0")
    assert [tuple(row) for row in rows] == [("k", 1)]
    assert await idc.hand.fetchval("SELECT count(*) FROM write_requests") == 0


async def test_law_l2_without_a_fence_nothing_is_written(idc: RowDatabase) -> None:
    outcomes = await idc.store.write(CUSTOMERS, [put("k", region="CN"), put("k", shard=77)])
    assert outcomes == [FenceMiss(None, 0), FenceMiss(None, 0)]
    assert await idc.hand.fetchval("SELECT count(*) FROM rows_customers") == 0


@pytest.mark.parametrize("mode", ["serving", "draining"])
async def test_a_serving_or_draining_shard_is_read(idc: RowDatabase, mode: str) -> None:
    await idc.store.write(CUSTOMERS, [put("k")])
    await idc.set_fence(mode=mode)
    one = await idc.store.read(CUSTOMERS, [get("k")])
    many = await idc.store.read(CUSTOMERS, [get("k"), get("absent")])
    assert isinstance(one[0], StoredRow)
    assert many == [one[0], Missing()]


@pytest.mark.parametrize(("mode", "epoch"), [("importing", 1), ("closed", 1), ("serving", 2), ("draining", 2)])
async def test_law_l4_a_shard_that_has_left_is_not_read(idc: RowDatabase, mode: str, epoch: int) -> None:
    await idc.store.write(CUSTOMERS, [put("k"), put("other", shard=1)])
    await idc.set_fence(mode=mode, epoch=epoch)
    miss = FenceMiss(FenceMode(mode), epoch)
    assert await idc.store.read(CUSTOMERS, [get("k")]) == [miss]
    outcomes = await idc.store.read(CUSTOMERS, [get("k"), get("absent"), get("other", shard=1), get("k", shard=99)])
    assert outcomes[:2] == [miss, miss]
    assert isinstance(outcomes[2], StoredRow)
    assert outcomes[3] == FenceMiss(None, 0)


async def test_if_version_0_writes_only_what_is_not_there(idc: RowDatabase) -> None:
    (first,) = await idc.store.write(CUSTOMERS, [put("k", {"spend": 1}, if_version=0)])
    assert isinstance(first, Written)
    assert await idc.store.write(CUSTOMERS, [put("k", {"spend": 2}, if_version=0)]) == [VersionMismatch(first.version)]
    await idc.store.write(CUSTOMERS, [delete("k")])
    (again,) = await idc.store.write(CUSTOMERS, [put("k", {"spend": 3}, if_version=0)])
    assert isinstance(again, Written)
    assert again.version > first.version


async def test_if_version_writes_only_over_that_version(idc: RowDatabase) -> None:
    (first,) = await idc.store.write(CUSTOMERS, [put("k")])
    assert isinstance(first, Written)
    (second,) = await idc.store.write(CUSTOMERS, [put("k", if_version=first.version)])
    assert isinstance(second, Written)
    assert await idc.store.write(CUSTOMERS, [put("k", if_version=first.version)]) == [VersionMismatch(second.version)]
    assert await idc.store.write(CUSTOMERS, [delete("k", if_version=first.version)]) == [
        VersionMismatch(second.version)
    ]
    (gone,) = await idc.store.write(CUSTOMERS, [delete("k", if_version=second.version)])
    assert isinstance(gone, Written)
    assert await idc.store.write(CUSTOMERS, [put("k", if_version=gone.version)]) == [VersionMismatch(0)]


async def test_time_never_runs_backwards_in_a_shard_though_the_clock_does(idc: RowDatabase) -> None:
    (before,) = await idc.store.write(CUSTOMERS, [put("k")])
    assert isinstance(before, Written)
    future = datetime.now(UTC) + timedelta(hours=1)
    await idc.hand.execute("UPDATE shard_fences SET last_time = $1 WHERE shard = 0", future)
    (during,) = await idc.store.write(CUSTOMERS, [put("k")])
    (other,) = await idc.store.write(CUSTOMERS, [put("o", shard=1)])
    assert isinstance(during, Written)
    assert isinstance(other, Written)
    assert during.update_time == future
    assert before.update_time <= other.update_time < future


async def test_a_name_that_sql_reserves_is_a_column_like_any_other(idc: RowDatabase) -> None:
    await idc.store.write(ORDERS, [put(1, {"order": "'; DROP TABLE rows_orders; --"})])
    (row,) = await idc.store.read(ORDERS, [get(1)])
    assert isinstance(row, StoredRow)
    assert row.values == {"order": "'; DROP TABLE rows_orders; --"}


async def test_counts_are_of_live_rows(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("a"), put("b"), put("c", shard=1), delete("b2")])
    assert await idc.store.count_rows(CUSTOMERS) == {("DE", 0): 2, ("DE", 1): 1}


async def test_opening_leaves_a_fence_that_is_there_alone(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("k")])
    await idc.set_fence(mode="closed", epoch=5)
    states = await idc.store.fences.open([ShardEpoch("DE", 7, 1), ShardEpoch("DE", 0, 1)])
    assert [(s.shard, s.epoch, s.mode, s.last_seq) for s in states] == [
        (7, 1, FenceMode.SERVING, 0),
        (0, 5, FenceMode.CLOSED, 1),
    ]
