"""Connections: bounded, replaced, never waited for without end, and silent about what they carried."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import asyncpg
import pytest

from policy.errors import DatabaseUnavailable, RegiongateError
from rowstore.database import Database
from rowstore.model import StoredRow, Written
from tests.support.row_databases import CUSTOMERS, RowDatabase, get, put, until
from tests.support.tcp_proxy import TcpProxy


async def kill_connections(idc: RowDatabase) -> None:
    await idc.hand.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'regiongate'"
    )


async def test_the_session_keeps_the_laws_whatever_the_server_says(idc: RowDatabase) -> None:
    name = idc.url.rpartition("/")[2]
    await idc.hand.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    await idc.hand.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    async with Database.open(idc.url) as database:
        (record,) = await database.fetch(
            "SELECT current_setting('transaction_isolation'), current_setting('synchronous_commit')"
        )
    assert tuple(record) == ("read committed", "on")


async def test_a_database_that_is_down_can_be_opened_and_is_used_when_it_is_up(idc: RowDatabase) -> None:
    async with TcpProxy(_port(idc.url)) as proxy:
        await proxy.cut()
        async with Database.open(_through(idc.url, proxy), size=1, connect_timeout=timedelta(seconds=1)) as database:
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    await database.check()
            assert not database.is_connected
            await proxy.heal()
            await database.check()
            assert database.is_connected


async def test_a_read_survives_the_loss_of_every_connection(idc: RowDatabase) -> None:
    await idc.store.write(CUSTOMERS, [put("k")])
    await asyncio.gather(*(idc.store.read(CUSTOMERS, [get("k")]) for _ in range(20)))
    await kill_connections(idc)
    for _ in range(10):
        assert isinstance((await idc.store.read(CUSTOMERS, [get("k")]))[0], StoredRow)


async def test_a_write_that_loses_its_connection_is_not_repeated_by_itself(idc: RowDatabase) -> None:
    async with idc.holding_fence():
        task = asyncio.create_task(idc.store.write(CUSTOMERS, [put("k")]))
        await idc.until_waiting(1)
        await kill_connections(idc)
        with pytest.raises(DatabaseUnavailable):
            await task
    assert await idc.hand.fetchval("SELECT count(*) FROM rows_customers") == 0
    assert isinstance((await idc.store.write(CUSTOMERS, [put("k")]))[0], Written)


async def test_a_wait_for_a_fence_has_an_end(idc: RowDatabase) -> None:
    gateway = await idc.another_gateway(statement_timeout=timedelta(milliseconds=200))
    async with idc.holding_fence():
        with pytest.raises(DatabaseUnavailable):
            await gateway.write(CUSTOMERS, [put("k")])
    assert isinstance((await gateway.write(CUSTOMERS, [put("k")]))[0], Written)


async def test_a_silent_server_is_given_up_on(idc: RowDatabase) -> None:
    async with TcpProxy(_port(idc.url)) as proxy:
        url = _through(idc.url, proxy)
        async with Database.open(url, statement_timeout=timedelta(milliseconds=100)) as database:
            await database.check()
            proxy.pause()
            started = asyncio.get_running_loop().time()
            with pytest.raises(DatabaseUnavailable):
                await database.check()
            assert asyncio.get_running_loop().time() - started < 4
            proxy.resume()


async def test_law_l2_a_cancelled_write_does_not_go_on_holding_its_place(idc: RowDatabase) -> None:
    async with idc.holding_fence():
        task = asyncio.create_task(idc.store.write(CUSTOMERS, [put("k")]))
        await idc.until_waiting(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        async def nobody_waits() -> bool:
            return await idc.waiting() == 0

        await until(nobody_waits, "the cancelled statement leaving the queue")
    assert await idc.hand.fetchval("SELECT count(*) FROM rows_customers") == 0


async def test_connections_are_bounded_and_the_waiting_are_served(idc: RowDatabase) -> None:
    async with Database.open(idc.url, size=2, application_name="bounded") as database:
        await asyncio.gather(*(database.fetch("SELECT pg_sleep(0.01)") for _ in range(30)))
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bounded'"
        assert await idc.hand.fetchval(count) == 2


async def test_a_wait_for_a_connection_has_an_end(idc: RowDatabase) -> None:
    async with (
        Database.open(
            idc.url,
            size=1,
            statement_timeout=timedelta(milliseconds=100),
            connect_timeout=timedelta(seconds=1),
        ) as database,
        database.connection(),
    ):
        with pytest.raises(DatabaseUnavailable, match="free in time"):
            await database.check()


async def test_cancelled_waiters_leave_no_hole(idc: RowDatabase) -> None:
    async with Database.open(idc.url, size=1) as database:
        async with database.connection():
            waiters = [asyncio.create_task(database.check()) for _ in range(5)]
            await asyncio.sleep(0)
            for waiter in waiters[:4]:
                waiter.cancel()
        await waiters[4]
        await database.check()


async def test_closing_refuses_those_who_wait(idc: RowDatabase) -> None:
    database = Database.open(idc.url, size=1)
    async with database.connection():
        waiter = asyncio.create_task(database.check())
        await asyncio.sleep(0)
        closing = asyncio.create_task(database.close())
        with pytest.raises(DatabaseUnavailable, match="stopping"):
            await waiter
    await closing
    with pytest.raises(DatabaseUnavailable, match="stopping"):
        await database.check()


@pytest.mark.parametrize(
    "statement",
    ["SELECT ('secret' || $1)::int", "SELECT jsonb($1::text)", "SELECT $1::int", "SELECT 1 / length($1) * 'x'::int"],
)
async def test_law_l1_no_error_carries_a_value(
    idc: RowDatabase, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(RegiongateError) as caught:
        await idc.database.fetch(statement, "secret marker")
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret" not in repr(error)
        error = error.__cause__ or error.__context__
    assert "secret" not in caplog.text


async def test_law_l1_the_server_logs_no_value(idc: RowDatabase, postgres_server: object) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        await idc.hand.execute(
            "INSERT INTO shard_fences VALUES ('secret', 1, 1, 'serving'), ('secret', 1, 1, 'serving')"
        )
    with pytest.raises(RegiongateError):
        await idc.database.fetch("SELECT 'secret'::int")
    assert "secret" not in postgres_server.log_path.read_text()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def _through(url: str, proxy: TcpProxy) -> str:
    return url.replace(f":{_port(url)}/", f":{proxy.port}/")
