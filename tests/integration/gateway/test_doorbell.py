"""Writes ring for job runners that listen, and lose nothing by it: on a real database, and through a whole gateway."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from gateway.doorbell import PAUSE, Doorbell
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import types_pb2
from rowstore.database import Database
from rowstore.jobs.registry import DOORBELL
from tests.support.gateways import EUROPE, running_site
from tests.support.tcp_proxy import TcpProxy

RUNNER = "regiongate-runner-fra"


class Listener:
    """A session that listens, and when it was rung."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.rings: list[float] = []
        self.rung = asyncio.Event()

    def hear(self, *_: object) -> None:
        self.rings.append(time.monotonic())
        self.rung.set()

    async def wait(self, seconds: float = 5) -> None:
        """Waits for the next ring."""
        await asyncio.wait_for(self.rung.wait(), seconds)
        self.rung.clear()

    async def settle(self) -> None:
        """Hears everything that was sent before now."""
        await self.connection.fetchval("SELECT 1")


@asynccontextmanager
async def listening(url: str, name: str = RUNNER):
    connection = await asyncpg.connect(url, server_settings={"application_name": name})
    try:
        listener = Listener(connection)
        await connection.add_listener(DOORBELL, listener.hear)
        yield listener
    finally:
        await connection.close()


@asynccontextmanager
async def doorbell_on(url: str):
    async with Database.open(url, size=2, application_name="regiongate-gateway-fra") as database:
        doorbell = Doorbell(database)
        try:
            yield doorbell
        finally:
            await doorbell.close()


@pytest.fixture
async def doorbell(database_url):
    async with doorbell_on(database_url) as made:
        yield made


def through(proxy: TcpProxy, url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")))


async def sessions(listener: Listener) -> int:
    """Sessions of doorbells on this database."""
    return await listener.connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'regiongate-gateway-fra-doorbell'"
    )


async def test_a_ring_is_heard_at_once(doorbell, database_url):
    async with listening(database_url) as listener:
        await doorbell.look()
        await listener.wait()  # for what came before anybody looked
        heard = []
        for _ in range(5):
            await asyncio.sleep(2 * PAUSE)  # each is the first after some quiet
            rung = time.monotonic()
            doorbell.ring()
            await listener.wait()
            heard.append(time.monotonic() - rung)
        assert min(heard) < PAUSE


async def test_nobody_rings_while_no_runner_is_connected(doorbell, database_url):
    async with listening(database_url, "psql") as listener:
        await doorbell.look()
        doorbell.ring()
        await doorbell.close()
        await listener.settle()
        assert listener.rings == []
        assert await sessions(listener) == 0


async def test_ringing_begins_and_ends_with_the_runners(doorbell, database_url):
    async with listening(database_url, "psql") as other:
        await doorbell.look()
        async with listening(database_url) as runner:
            doorbell.ring()
            await doorbell.look()
            await runner.wait()
        await other.wait()
        async with asyncio.timeout(5):
            while await other.connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", RUNNER
            ):
                pass
        await doorbell.look()
        doorbell.ring()
        await doorbell.close()
        await other.settle()
        assert not other.rung.is_set()


async def test_many_writes_ring_once_in_a_while_and_the_last_one_is_always_followed_by_a_ring(doorbell, database_url):
    randomness = random.Random(7)
    async with listening(database_url) as listener, doorbell._database.connection() as writer:
        await writer.execute("CREATE TABLE written (n int)")
        await doorbell.look()
        await listener.wait()
        n = 0
        for _ in range(20):
            listener.rings.clear()
            began = time.monotonic()
            for _ in range(randomness.randrange(1, 60)):
                n += 1
                await writer.execute("INSERT INTO written VALUES ($1)", n)
                doorbell.ring()
            seen = 0
            while seen < n:  # a runner that looks only when it is rung
                await listener.wait()
                seen = await writer.fetchval("SELECT max(n) FROM written")
            took = time.monotonic() - began
            assert len(listener.rings) <= took / PAUSE + 2
            await asyncio.sleep(randomness.uniform(0, 2 * PAUSE))


async def test_a_bell_whose_connection_breaks_rings_over_another_one(doorbell, database_url):
    async with listening(database_url) as listener:
        await doorbell.look()
        await listener.wait()
        for _ in range(3):
            await listener.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%-doorbell'"
            )
            async with asyncio.timeout(5):
                while not listener.rung.is_set():
                    doorbell.ring()
                    await asyncio.sleep(PAUSE)
            await listener.wait()


async def test_a_database_that_does_not_answer_holds_up_nobody_who_rings(database_url):
    async with (
        TcpProxy(urlsplit(database_url).port) as proxy,
        listening(database_url) as listener,
        doorbell_on(through(proxy, database_url)) as doorbell,
    ):
        await doorbell.look()
        await listener.wait()
        proxy.pause()
        began = time.monotonic()
        for _ in range(1000):
            doorbell.ring()
        assert time.monotonic() - began < 0.1
        await asyncio.wait_for(doorbell.close(), 8)
        proxy.resume()


def put(text: str) -> pb.PutRowRequest:
    columns = {"name": types_pb2.Value(string_value="Ada")}
    return pb.PutRowRequest(dataset="customers", region_code="DE", key=types_pb2.Key(string_key=text), columns=columns)


async def test_a_put_through_a_gateway_rings_for_the_runners_of_the_idc_that_owns_the_row(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server, "fra", "ams", policy=EUROPE) as site:
        keys = [f"k-{n}" for n in range(40)]
        owners = {key: site["fra"].table.resolve("DE", key).idc for key in keys}
        async with listening(site.databases["ams"]) as ams, listening(site.databases["fra"]) as fra:
            await ams.wait()  # the gateway has seen it
            await fra.wait()
            for key in keys[:10]:
                await site["fra"].rows.PutRow(put(key), timeout=5)
                await {"fra": fra, "ams": ams}[owners[key]].wait()
            for key in keys:  # the bell's connection breaks all the time
                await site["fra"].rows.PutRow(put(key), timeout=5)
                await ams.connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%-doorbell'"
                )
