"""Moves in trouble: attempts that were called off, leftovers, purges that must not be, databases that fail."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from sqlalchemy import BigInteger, Column, MetaData, Table, Text

from policy.errors import DatabaseUnavailable, DigestMismatch, StaleAttempt
from rowstore.database import Database
from rowstore.moving import Head, Mover, SliceEnd, connections
from rowstore.shard_tables import SHARD_TABLES, ShardTable, Travels
from tests.support.row_databases import CUSTOMERS, STEP, MovePair, assert_equal, delete, fill, put
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rowstore.moving import ExportPart, ImportProgress

SECOND = STEP._replace(attempt=3)
"""The attempt after one that was called off."""
OFFSETS = Table(
    "offsets",
    MetaData(),
    Column("region_code", Text, primary_key=True),
    Column("shard", BigInteger, primary_key=True),
    Column("job", Text, primary_key=True),
    Column("token", BigInteger),
)
WITH_OFFSETS = (
    *SHARD_TABLES,
    ShardTable(
        OFFSETS, Travels.WHOLE, "UPDATE offsets SET token = token + 1 WHERE region_code = $1 AND shard = $2::int"
    ),
)
MAKE_OFFSETS = (
    "CREATE TABLE offsets (region_code text, shard int, job text, token bigint, PRIMARY KEY (region_code, shard, job))"
)


async def import_all(pair: MovePair, parts: AsyncIterator[ExportPart], begun: ImportProgress) -> None:
    async for _ in pair.receiver.import_parts(STEP, parts, begun=begun, closed_at_seq=None):
        pass


# ---- leftovers and late comers --------------------------------------------------------------------------------------


async def test_law_l3_nothing_of_an_attempt_that_was_called_off_comes_back_to_life(pair: MovePair) -> None:
    await fill(pair)
    await pair.source.store.write(CUSTOMERS, [put("gone", request_id="r"), put("tomb")])
    await pair.source.store.write(CUSTOMERS, [delete("tomb")])
    await pair.sender.begin_export(STEP)
    await pair.copy()
    await pair.sender.reopen(STEP._replace(attempt=2))
    # As it would be when somebody has collected tombstones, and forgotten requests, since.
    await pair.source.store.write(CUSTOMERS, [put("k0", {"spend": -1}), delete("k1")])
    await pair.source.hand.execute("DELETE FROM rows_customers WHERE key IN ('gone', 'tomb', 'k1')")
    await pair.source.hand.execute("DELETE FROM write_requests")
    progress = await pair.move(SECOND)
    await assert_equal(pair)
    assert progress.digest == await pair.sender.digest(SECOND)
    assert progress.rows_copied == 299


async def test_law_l2_a_paused_import_that_goes_on_after_a_new_attempt_began_writes_nothing(pair: MovePair) -> None:
    await fill(pair)
    await pair.sender.begin_export(STEP)
    begun = await pair.receiver.begin_import(STEP)
    paused, goes_on = asyncio.Event(), asyncio.Event()

    async def with_pause() -> AsyncIterator[ExportPart]:
        async for part in pair.parts(STEP, begun):
            # All rows are loaded, and the slice is about to be committed.
            if isinstance(part, SliceEnd):
                paused.set()
                await goes_on.wait()
            yield part

    late = asyncio.create_task(import_all(pair, with_pause(), begun))
    await asyncio.wait_for(paused.wait(), 10)
    await pair.sender.reopen(STEP._replace(attempt=2))
    begin = asyncio.create_task(pair.receiver.begin_import(SECOND))
    await pair.target.until_waiting(1)
    goes_on.set()
    with pytest.raises(StaleAttempt):
        await late
    await begin
    assert not any((await pair.target.contents()).values())
    await pair.sender.begin_export(SECOND)
    await pair.copy(SECOND)
    await pair.close_and_copy(SECOND)
    await assert_equal(pair)


async def test_law_l1_a_paused_import_that_goes_on_after_the_purge_leaves_nothing(pair: MovePair) -> None:
    await fill(pair)
    await pair.sender.begin_export(STEP)
    begun = await pair.receiver.begin_import(STEP)
    paused, goes_on = asyncio.Event(), asyncio.Event()

    async def with_pause() -> AsyncIterator[ExportPart]:
        async for part in pair.parts(STEP, begun):
            yield part
            if isinstance(part, SliceEnd):
                # The slice before is durable; the next one has not begun.
                paused.set()
                await goes_on.wait()

    late = asyncio.create_task(import_all(pair, with_pause(), begun))
    await asyncio.wait_for(paused.wait(), 10)
    proof = await pair.receiver.purge(STEP._replace(attempt=2), None)
    assert proof.deleted["rows_customers"] == 256
    assert proof.remaining == 0
    goes_on.set()
    with pytest.raises(StaleAttempt):
        await late
    assert not any((await pair.target.contents()).values())


async def test_two_imports_of_one_attempt_do_not_mix(pair: MovePair) -> None:
    await fill(pair, 2000)
    await pair.sender.begin_export(STEP)
    await pair.receiver.begin_import(STEP)
    outcomes = await asyncio.gather(*(pair.copy() for _ in range(4)), return_exceptions=True)
    assert all(isinstance(outcome, (tuple, DatabaseUnavailable)) for outcome in outcomes), outcomes
    progress = await pair.copy()
    assert progress.rows_copied == 2000
    progress = await pair.close_and_copy()
    assert progress.digest == await pair.receiver.digest(STEP)
    await assert_equal(pair)


async def test_an_export_that_begins_below_what_another_import_has_brought_is_refused(pair: MovePair) -> None:
    await fill(pair)
    await pair.sender.begin_export(STEP)
    begun = await pair.receiver.begin_import(STEP)
    await pair.copy()
    with pytest.raises(DatabaseUnavailable, match="somebody else"):
        await import_all(pair, pair.parts(STEP, begun), begun)
    await pair.close_and_copy()
    await assert_equal(pair)


async def test_two_beginnings_of_one_attempt_delete_no_row_that_one_has_let_in(pair: MovePair) -> None:
    await pair.target.hand.execute(
        "INSERT INTO rows_customers (region_code, key, shard, seq, update_time, deleted)"
        " SELECT 'DE', 'left' || i, 0, i, now(), false FROM generate_series(1, 45000) i"
    )
    await fill(pair)
    await pair.sender.begin_export(STEP)

    async def begin_and_copy() -> None:
        for _ in range(20):
            try:
                await pair.copy()
            except DatabaseUnavailable:
                continue
            return
        pytest.fail("never got through")

    await asyncio.gather(*(begin_and_copy() for _ in range(3)))
    await pair.close_and_copy()
    await assert_equal(pair)


# ---- tables that travel whole ---------------------------------------------------------------------------------------


async def test_a_table_that_travels_whole_comes_with_the_last_round_and_is_closed_with_the_shard(
    pair: MovePair,
) -> None:
    for idc in (pair.source, pair.target):
        await idc.hand.execute(MAKE_OFFSETS)
    await pair.source.hand.execute("INSERT INTO offsets VALUES ('DE', 0, 'job', 7), ('DE', 1, 'job', 1)")
    await pair.target.hand.execute("INSERT INTO offsets VALUES ('DE', 0, 'left over', 1)")
    await fill(pair)
    async with (
        Mover(pair.source.database, WITH_OFFSETS) as sender,
        Mover(pair.target.database, WITH_OFFSETS) as receiver,
    ):
        both = MovePair(pair.source, pair.target, sender, receiver)
        await sender.begin_export(STEP)
        await both.copy()
        assert await pair.target.hand.fetchval("SELECT count(*) FROM offsets") == 0
        progress = await both.close_and_copy()
        again = await both.copy(closed_at_seq=300)
        assert [tuple(row) for row in await pair.target.hand.fetch("SELECT * FROM offsets")] == [("DE", 0, "job", 8)]
        assert progress.digest == again.digest == await sender.digest(STEP)
        await receiver.open(STEP)
        proof = await sender.purge(STEP, progress.digest)
        assert (proof.deleted["offsets"], proof.remaining) == (1, 0)
        assert await pair.source.hand.fetchval("SELECT count(*) FROM offsets") == 1


# ---- sources that err -----------------------------------------------------------------------------------------------


async def test_law_l1_rows_of_another_shard_are_not_let_in_whatever_the_source_sends(pair: MovePair) -> None:
    await fill(pair, 100)
    await pair.sender.begin_export(STEP)
    begun = await pair.receiver.begin_import(STEP)
    honest = [part async for part in pair.parts(STEP, begun)]
    await pair.source.store.write(CUSTOMERS, [put("foreign", shard=1)])
    everything = bytearray()

    async def take(piece: bytes) -> None:
        everything.extend(piece)

    assert isinstance(honest[0], Head)
    (columns,) = (layout.columns for layout in honest[0].tables if layout.table == "rows_customers")
    await pair.source.hand.copy_from_table("rows_customers", columns=columns, output=take, format="binary")

    async def with_foreign() -> AsyncIterator[ExportPart]:
        for index, part in enumerate(honest):
            yield bytes(everything) if index == 2 else part

    with pytest.raises(DigestMismatch):
        await import_all(pair, with_foreign(), begun)
    assert await pair.target.hand.fetchval("SELECT count(*) FROM rows_customers") == 0


async def test_law_l3_a_slice_that_was_changed_on_its_way_is_not_kept(pair: MovePair) -> None:
    await fill(pair, 100)
    await pair.sender.begin_export(STEP)
    begun = await pair.receiver.begin_import(STEP)

    async def changed() -> AsyncIterator[ExportPart]:
        async for part in pair.parts(STEP, begun):
            yield part.replace(b"k77", b"k7x") if isinstance(part, bytes) else part

    with pytest.raises(DigestMismatch):
        await import_all(pair, changed(), begun)
    assert not any((await pair.target.contents()).values())
    await pair.copy()
    await pair.close_and_copy()
    await assert_equal(pair)


# ---- databases that fail --------------------------------------------------------------------------------------------


async def test_a_target_whose_disk_is_full_says_so_and_the_copy_can_be_finished(pair: MovePair) -> None:
    await fill(pair)
    await pair.sender.begin_export(STEP)
    await pair.target.hand.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN IF NEW.seq = 280 THEN RAISE EXCEPTION 'secret' USING ERRCODE = '53100'; END IF; RETURN NEW; END$$;
        CREATE TRIGGER refuse BEFORE INSERT ON rows_customers FOR EACH ROW EXECUTE FUNCTION refuse()"""
    )
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="short of resources"):
            await pair.copy()
    assert (await pair.receiver.begin_import(STEP)).copied_seq == 256
    await pair.target.hand.execute("DROP TRIGGER refuse ON rows_customers")
    await pair.copy()
    await pair.close_and_copy()
    await assert_equal(pair)


@asynccontextmanager
async def through_proxies(pair: MovePair) -> AsyncIterator[tuple[MovePair, TcpProxy, TcpProxy]]:
    """The pair, with the moves' connections going through proxies."""

    def port(url: str) -> int:
        return int(url.rpartition(":")[2].partition("/")[0])

    async with TcpProxy(port(pair.source.url)) as one, TcpProxy(port(pair.target.url)) as other:
        urls = [
            idc.url.replace(f":{port(idc.url)}/", f":{proxy.port}/")
            for idc, proxy in ((pair.source, one), (pair.target, other))
        ]
        settings = {"statement_timeout": timedelta(seconds=1), "connect_timeout": timedelta(seconds=1)}
        async with (
            Database.open(urls[0], **settings) as source,
            Database.open(urls[1], **settings) as target,
            Mover(source) as sender,
            Mover(target) as receiver,
        ):
            yield MovePair(pair.source, pair.target, sender, receiver), one, other


@pytest.mark.parametrize("end", ["source", "target"])
@pytest.mark.parametrize("trouble", ["cut", "silent"])
async def test_a_database_that_is_lost_or_frozen_in_a_slice_is_told_and_the_copy_can_be_finished(
    pair: MovePair, end: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowstore.moving.connections.PIECE_SECONDS", 0.5)
    monkeypatch.setattr("rowstore.moving.connections.STATEMENT_SECONDS", 0.5)
    await fill(pair, 2000)
    await pair.sender.begin_export(STEP)
    async with through_proxies(pair) as (shaky, one, other):
        proxy = one if end == "source" else other
        begun = await shaky.receiver.begin_import(STEP)

        async def with_trouble() -> AsyncIterator[ExportPart]:
            async for part in shaky.parts(STEP, begun):
                if isinstance(part, bytes):
                    if trouble == "cut":
                        await proxy.cut()
                    else:
                        proxy.pause()
                yield part

        with pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(import_all(shaky, with_trouble(), begun), 20)
        proxy.resume()
        await proxy.heal()
        await shaky.copy()
        await shaky.close_and_copy()
        await assert_equal(pair)


async def test_a_server_that_freezes_in_a_copy_is_noticed(pair: MovePair) -> None:
    connection = await asyncpg.connect(pair.source.url)

    async def take(_: bytes) -> None:
        pass

    with connections.Watch(connection, 0.2), pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.copy_from_query("SELECT pg_sleep(30)", output=take)
    await connection.close()
