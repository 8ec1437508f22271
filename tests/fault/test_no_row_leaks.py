"""Law L1: no key, no value and no part of a row is anywhere but in the databases where its RegionCode may lie.

A stack with every call traced and every log line written gets rows, filters, page tokens, request ids and bad input,
all full of markers. Calls are forwarded, denied, cut off and answered with errors. Then everything that the stack has
put out is searched: every file of its folder (databases with their write-ahead logs, etcd, logs, traces), every key and
value of etcd, every process's metrics, and what the supervisor has said.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc.aio
import pytest

import regiongate
from policy.errors import RegiongateError
from regiongate import Delete, Put
from regiongate.v1 import row_service_pb2, types_pb2
from runtime.supervisor.probe import fetch
from tests.support.law_stack import IDCS, JURISDICTIONS, POLICY, LawStack, calling, running_law_stack, until
from tests.support.markers import NOWHERE, Found, Markers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.client import Client
    from tests.support.law_stack import RawCaller

PATIENCE = 45
LAW = (
    POLICY
    + """\
  counters:
    key: int64
    columns:
      n: {type: int64}
      note: {type: json}
      size: {type: decimal}
"""
)
HOMES = {"DE": "fra", "FR": "ams", "SG": "sin", "CN": "sha"}


@pytest.fixture(scope="module")
def laws() -> Iterator[LawStack]:
    with running_law_stack(LAW, trace_sample_ratio=1.0, arguments=("--log-level", "debug")) as stack:
        stack.document = LAW
        yield stack


@pytest.fixture
def markers() -> Markers:
    return Markers(random.Random("leaks").randrange(10**9))


async def test_law_l1_nothing_of_a_row_is_anywhere_but_where_it_may_lie(laws: LawStack, markers: Markers) -> None:
    traffic = Traffic(laws, markers)
    for region_code in HOMES:
        await traffic.at_home(region_code)
    await traffic.across_borders()
    await traffic.of_bad_input()
    await traffic.of_broken_messages()
    await traffic.while_things_break()
    await laws.heal()
    # Markers where none may be: the search must see each of them.
    planted = await _plant(laws, markers)
    found = await _search(laws, markers)
    leaks = [it for it in found if not _is_lawful(it) and it.text != planted]
    assert not leaks, "\n".join(map(str, leaks[:20]))
    seen = {it.place.split("/")[0] for it in found if it.text == planted and not _is_lawful(it)}
    assert seen == {"logs", "traces", "planted", "etcd", "postgres", "etcd key"}
    # The search would find no leak in an empty stack, too: each RegionCode's rows are where they should be.
    lawful = {(it.region_code, it.place.split("/")[1]) for it in found if _is_lawful(it)}
    assert {("CN", "sha"), ("SG", "sin")} <= lawful
    assert {"DE", "FR"} <= {code for code, idc in lawful if idc in {"fra", "ams"}}


async def _plant(laws: LawStack, markers: Markers) -> str:
    """Puts one marker into each kind of place."""
    data, text = laws.stack.data_dir, markers.text("DE")
    for path in (data / "logs" / "gateway-sin.log", data / "traces" / "planted.jsonl", data / "planted"):
        with path.open("a") as file:
            file.write(f"... {text} ...")
    async with laws.etcd() as etcd:
        await etcd.put(f"{laws.keys.root}audit/{text}", b"")
    async with laws.database("sin") as connection:
        await connection.execute(f"CREATE TABLE planted AS SELECT '{text}' AS key")
    return text


def _is_lawful(found: Found) -> bool:
    """Whether the marker lies in the files of a database where its RegionCode may lie."""
    parts = found.place.split("/")
    if parts[0] != "postgres" or parts[2] != "data" or found.region_code == NOWHERE:
        return False
    return not found.place.endswith(".log") and IDCS[parts[1]] == JURISDICTIONS[found.region_code]


async def _search(laws: LawStack, markers: Markers) -> list[Found]:
    for idc in IDCS:
        async with laws.database(idc) as connection:
            await connection.execute("CHECKPOINT")
    found = list(await asyncio.to_thread(lambda: list(markers.find_in_files(laws.stack.data_dir))))
    found += markers.find(laws.stack.said().encode(), "said")
    async with laws.etcd() as etcd:
        for item in (await etcd.list("/")).items:
            found += markers.find(item.key.encode(), "etcd key")
            found += markers.find(item.value, f"etcd key/{item.key}")
    for process in laws.stack.file.processes:
        if process.metrics:
            _, page = await fetch(f"{process.metrics}/metrics")
            found += markers.find(page, f"metrics of {process.name}")
    return found


@dataclass
class Traffic:
    """Calls full of markers."""

    laws: LawStack
    markers: Markers

    async def at_home(self, region_code: str) -> None:
        """Everything that can be done with rows, from inside their jurisdiction."""
        text, address = self.markers.text, self.laws.stack.gateway(HOMES[region_code])
        keys = [text(region_code) for _ in range(12)]
        for is_direct in (True, False):
            async with regiongate.connect(address, direct=is_direct) as client:
                await self._write_and_read(client, region_code, keys)
        async with regiongate.connect(address) as client:
            number = self.markers.number(region_code)
            note = {"marker": text(region_code)}
            await client.put("counters", region_code, number, {"n": self.markers.number(region_code), "note": note})
            assert (await client.get("counters", region_code, number)).values["note"] == note
            # A page token of the other kind of key.
            await client.put("counters", region_code, number + 1, {"n": 1})
            page = await client.list_page("counters", region_code, page_size=1)
            await client.list_page("counters", region_code, page_size=1, page_token=page.next_page_token)

    async def _write_and_read(self, client: Client, region_code: str, keys: list[str]) -> None:
        text = self.markers.text
        for key in keys[:4]:
            row = {"name": text(region_code), "spend": self.markers.number(region_code)}
            receipt = await client.put("customers", region_code, key, row, request_id=text(region_code))
            assert (await client.get("customers", region_code, key)).values == row
            for version in (0, receipt.version + 99):
                with pytest.raises(RegiongateError):
                    await client.put("customers", region_code, key, row, if_version=version)
            await client.delete("customers", region_code, key, if_version=receipt.version)
            with pytest.raises(RegiongateError):
                await client.get("customers", region_code, key)
        writes = [Put(region_code, key, {"name": text(region_code), "spend": 5}) for key in keys[4:]]
        await client.batch_write("customers", writes, request_id=text(region_code))
        await client.batch_write(
            "customers", [Delete(region_code, keys[4]), Put(region_code, keys[5], {"spend": 1}, 7)]
        )
        await client.batch_get("customers", [(region_code, key) for key in keys])
        listed = [row async for row in client.list("customers", region_code, page_size=2)]
        assert len(listed) >= 7
        page = await client.list_page("customers", region_code, page_size=2, filter=f'name != "{text()}"')
        for token in (page.next_page_token[:-2], text(), page.next_page_token):
            with pytest.raises(RegiongateError):
                await client.list_page("customers", region_code, page_size=2, page_token=token)

    async def across_borders(self) -> None:
        """Forwarded, without what is withheld, and denied."""
        text, stack = self.markers.text, self.laws.stack
        key = text("DE")
        async with regiongate.connect(stack.gateway("fra")) as home:
            await home.put("customers", "DE", key, {"name": text("DE"), "spend": 3})
        for is_direct in (True, False):
            async with regiongate.connect(stack.gateway("sin"), purpose="support", direct=is_direct) as asia:
                assert "name" not in (await asia.get("customers", "DE", key)).values
                [row async for row in asia.list("customers", "DE", filter="spend > 1", page_size=2)]
                await asia.batch_get("customers", [("DE", key), ("CN", text("CN")), ("SG", text("SG"))])
                for denied in (
                    asia.put("customers", "DE", text(), {"name": text()}, request_id=text()),
                    asia.get("customers", "CN", text()),
                    asia.list_page("customers", "DE", filter=f'name = "{text()}"'),
                    asia.delete("customers", "CN", text()),
                    asia.get("customers", "DE", text(), purpose="none"),
                ):
                    with pytest.raises(RegiongateError):
                        await denied

    async def of_bad_input(self) -> None:
        """What is refused is kept nowhere."""
        text = self.markers.text
        long, string = text() + "x" * 600, types_pb2.Key(string_key=text())
        async with calling(self.laws.stack.gateway("fra")) as raw:
            for region_code, key in (
                ("DE", types_pb2.Key(string_key=long)),
                ("DE", types_pb2.Key(string_key=f"{text()}\0")),
                ("DE", types_pb2.Key(int64_key=self.markers.number())),
                ("DE", types_pb2.Key()),
                (text(), string),
                ("", string),
            ):
                await self._put(raw, region_code, key, spend=types_pb2.Value(int64_value=1))
            for column, cell in (
                ("spend", types_pb2.Value(string_value=text())),
                ("spend", types_pb2.Value()),
                ("spend", types_pb2.Value(decimal_value=text())),
                ("name", types_pb2.Value(string_value=f"{text()}\0")),
                ("name", types_pb2.Value(string_value=text() * 50_000)),
                ("name", types_pb2.Value(int64_value=self.markers.number())),
                (text(), types_pb2.Value(int64_value=1)),
            ):
                await self._put(raw, "DE", string, **{column: cell})
            await self._put(raw, "DE", string, request_id=text() * 9, spend=types_pb2.Value(int64_value=1))
            await self._put(raw, "DE", string, dataset=text(), spend=types_pb2.Value(int64_value=1))
            counter = types_pb2.Key(int64_key=self.markers.number())
            for column, cell in (
                ("note", types_pb2.Value(json_value=f'{{"a": "{text()}')),
                ("size", types_pb2.Value(decimal_value=f"{text()}.0")),
            ):
                await self._put(raw, "DE", counter, dataset="counters", **{column: cell})
            for condition in (f'name = "{text()}', f'{text()} = "x"', f'spend = "{text()}"', f'name ~ "{text()}"'):
                request = row_service_pb2.ListRowsRequest(dataset="customers", region_code="DE", filter=condition)
                await self._refused(raw, raw.rows.ListRows, request)
            twice = row_service_pb2.BatchWriteRowsRequest(dataset="customers")
            for _ in range(2):
                twice.writes.add(region_code="DE", key=string).put.columns["name"].string_value = text()
            await self._refused(raw, raw.rows.BatchWriteRows, twice)

    async def of_broken_messages(self) -> None:
        """Bytes that are no message, and operations without a meaning."""
        content = b"\xff\xff" + self.markers.text().encode()
        async with grpc.aio.insecure_channel(self.laws.stack.gateway("fra")) as channel:
            for method in ("GetRow", "PutRow", "BatchWriteRows"):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(f"/regiongate.v1.RowService/{method}")(content, timeout=10)
        async with calling(self.laws.stack.gateway("fra")) as raw:
            request = row_service_pb2.ExchangeRequest()
            request.operations.add(id=1, dataset=self.markers.text(), region_code=self.markers.text())
            request.operations.add(id=2, dataset="customers", region_code="DE", request_id=self.markers.text())
            request.operations[1].key.string_key = self.markers.text()
            stream = raw.rows.Exchange(timeout=10)
            await stream.write(request)
            assert (await stream.read()).results[0].HasField("error")
            stream.cancel()

    async def while_things_break(self) -> None:
        """A server process of a database is killed in the middle of a write, and then a gateway."""
        text, laws = self.markers.text, self.laws
        async with regiongate.connect(laws.stack.gateway("ams"), direct=False) as client:
            writes: list[asyncio.Future[regiongate.Receipt]] = []
            # The server ends all of its connections, the test's own, too.
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await self._kill_a_writer(client, writes)
            await asyncio.gather(*writes)
            laws.stack.signal("gateway-fra", SIGKILL)
            await client.put("customers", "DE", text("DE"), {"name": text("DE")}, timeout=PATIENCE)

    async def _kill_a_writer(self, client: Client, writes: list[asyncio.Future[regiongate.Receipt]]) -> None:
        text, laws = self.markers.text, self.laws
        async with laws.database("fra") as connection, connection.transaction():
            await connection.execute("LOCK TABLE rows_customers IN SHARE MODE")
            for _ in range(8):
                write = client.put("customers", "DE", text("DE"), {"name": text("DE")}, timeout=PATIENCE)
                writes.append(asyncio.ensure_future(write))
            waiting = "SELECT pid FROM pg_locks WHERE NOT granted"
            await until(lambda: connection.fetchval(waiting), PATIENCE, "nothing waits for the lock")
            os.kill(await connection.fetchval(waiting), SIGKILL)
            await until(lambda: connection.fetchval("SELECT false"), PATIENCE, "the server stays up")

    async def _put(
        self,
        raw: RawCaller,
        region_code: str,
        key: types_pb2.Key,
        *,
        dataset: str = "customers",
        request_id: str = "",
        **columns: types_pb2.Value,
    ) -> None:
        request = row_service_pb2.PutRowRequest(
            dataset=dataset, region_code=region_code, key=key, columns=columns, request_id=request_id
        )
        await self._refused(raw, raw.rows.PutRow, request)

    async def _refused(self, raw: RawCaller, method: Any, request: Any) -> None:
        with pytest.raises(RegiongateError):
            await raw.call(method, request)
