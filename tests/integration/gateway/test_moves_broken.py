"""What breaks in the middle of a move, or may not be: a cut stream, a gateway that stops, a law that changes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from policy.model import Phase
from policy.sharding import shard_of
from regiongate.v1 import policy_service_pb2, types_pb2
from regiongate.v1 import row_service_pb2 as rows_pb
from regiongate.v1 import shard_service_pb2 as pb
from runtime.etcd import EtcdClient, EtcdSettings
from tests.support.gateways import EUROPE, Site, refusal, running_site, until
from tests.support.hand_moves import HandMove, stored
from tests.support.ports import free_ports
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROWS = 9000
SLOW = 0.02
"""Seconds for each piece of at most 64 KiB between the two gateways: a copy takes a second or two."""
LAW_OF_TWO = EUROPE.replace("ams: {jurisdiction: EU}", "ams: {jurisdiction: UK}").replace(
    "idcs: {fra: 50, ams: 50}", "idcs: {fra: 100}"
)
"""The rows may not be in ams any more."""
ONLY_FRA = EUROPE.replace("idcs: {fra: 50, ams: 50}", "idcs: {fra: 100}")


class Setting:
    """A full shard in fra, on its way to ams over a line that can be slow or cut."""

    def __init__(self, site: Site, moving: HandMove, line: TcpProxy, store: TcpProxy) -> None:
        self.site = site
        self.moving = moving
        self.line = line
        self.store = store
        """Between ams and etcd."""

    def importing(self):
        """An import that goes on."""
        return self.site["ams"].shards.ImportShard(pb.ImportShardRequest(move=self.moving.reference))

    async def read_until_rows(self, call) -> int:
        """Reads an import until the first rows are durable; returns how many."""
        async with asyncio.timeout(20):
            while not (message := await call.read()).rows_copied:
                pass
        assert not message.is_done
        return message.rows_copied

    async def there(self) -> int:
        """Rows in ams."""
        return len(await stored(self.site, "ams", "DE", 0))


@asynccontextmanager
async def setting(etcd, postgres_server) -> AsyncIterator[Setting]:
    (port,) = free_ports(1)
    async with (
        TcpProxy(port) as line,
        TcpProxy(int(etcd.endpoint.rpartition(":")[2])) as store,
    ):
        options = {
            "fra": {"peer_listen": f"127.0.0.1:{port}", "peer_advertise": line.address},
            "ams": {"etcd_endpoints": store.address},
        }
        async with (
            running_site(
                etcd.endpoint,
                postgres_server,
                "fra",
                "ams",
                policy=ONLY_FRA,
                options=options.__getitem__,
                has_controller=False,
            ) as site,
            EtcdClient(EtcdSettings((site.etcd_endpoint,))) as client,
        ):
            await fill(site)
            moving = HandMove(site, client, "DE", 0, "ams")
            await moving.start()
            yield Setting(site, moving, line, store)
            line.delay = 0


async def fill(site: Site) -> None:
    """Many rows, all in shard 0 of DE."""
    keys = (key for key in map(str, range(10**9)) if shard_of(key, 4) == 0)
    for _ in range(ROWS // 1000):
        request = rows_pb.BatchWriteRowsRequest(dataset="customers")
        for _ in range(1000):
            write = request.writes.add(region_code="DE", key=types_pb2.Key(string_key=next(keys)))
            write.put.columns["name"].string_value = "n" * 100
        answer = await site["fra"].rows.BatchWriteRows(request, timeout=10)
        assert all(result.version for result in answer.results)


@pytest.fixture
async def broken(etcd, postgres_server):
    async with setting(etcd, postgres_server) as made:
        yield made


async def test_a_stream_that_is_cut_is_begun_again_where_it_was(broken: Setting):
    """Law L3: and what has arrived is what was sent."""
    broken.line.delay = SLOW
    call = broken.importing()
    assert await broken.read_until_rows(call) < ROWS
    connections = broken.line.connections
    await broken.line.cut_connections()
    broken.line.delay = 0
    messages = await _rest(call)
    assert messages[-1].is_done
    assert messages[-1].rows_copied < ROWS + 2 * 2000, "it did not begin from the first row"
    assert broken.line.connections > connections
    await broken.moving.drain()
    last = await broken.moving.close()
    assert last.digest.rows == ROWS
    await broken.moving.switch(last)
    assert (await broken.moving.purge()).remaining == 0
    assert await broken.there() == ROWS


async def test_a_source_that_stays_away_is_told_to_the_controller_and_the_next_import_goes_on(broken: Setting):
    await broken.line.cut()
    assert (await refusal(_rest(broken.importing())))[:2] == ("UNAVAILABLE", "UNAVAILABLE")
    await broken.line.heal()
    assert (await broken.moving.copy()).rows_copied == ROWS


async def test_a_newer_call_takes_the_place_of_an_import_that_goes_on(broken: Setting):
    broken.line.delay = SLOW
    first = broken.importing()
    await broken.read_until_rows(first)
    second = broken.importing()
    assert (await refusal(_rest(first)))[1] == "UNAVAILABLE"
    broken.line.delay = 0
    assert (await _rest(second))[-1].is_done


async def test_an_import_whose_caller_has_gone_ends_and_keeps_what_is_durable(broken: Setting):
    broken.line.delay = SLOW
    call = broken.importing()
    copied = await broken.read_until_rows(call)
    call.cancel()
    await until(lambda: not _imports(broken.site))
    now = await broken.there()
    assert copied <= now < ROWS
    broken.line.delay = 0
    assert (await broken.moving.copy()).rows_copied == ROWS


def _imports(site: Site) -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name() == "import"}


@pytest.mark.parametrize("idc", ["ams", "fra"])
async def test_a_gateway_that_stops_ends_its_imports_and_exports_at_once(broken: Setting, idc: str):
    broken.line.delay = SLOW
    call = broken.importing()
    await broken.read_until_rows(call)
    ending = asyncio.create_task(broken.site[idc].end())
    if idc == "ams":
        assert (await refusal(_rest(call)))[1] == "UNAVAILABLE"
    async with asyncio.timeout(3):
        await ending
    call.cancel()
    if idc == "ams":
        # What a source has handed to the network may still arrive: all of it, when the machine is busy.
        assert await broken.there() < ROWS


async def test_a_law_that_changes_in_the_middle_of_a_copy_stops_it(broken: Setting):
    """Law L1: nothing more is stored where the rows may not be, and whoever asks learns the rule."""
    broken.line.delay = SLOW
    call = broken.importing()
    await broken.read_until_rows(call)
    await _apply(broken.site, LAW_OF_TWO)
    status, reason, metadata = await refusal(_rest(call))
    assert (status, reason) == ("PERMISSION_DENIED", "ACCESS_DENIED")
    assert metadata == {"rule": "europe", "policy_revision": "2"}
    there = await broken.there()
    assert there < ROWS
    broken.line.delay = 0
    assert (await refusal(_rest(broken.importing())))[1] == "ACCESS_DENIED"
    export = pb.ExportShardRequest(move=broken.moving.reference)
    told = broken.site["fra"].shards.ExportShard(export, metadata=(("x-regiongate-ingress", "ams"),))
    assert (await refusal(told.read()))[1] == "ACCESS_DENIED", "the source judges, too"
    assert await broken.there() == there
    await broken.moving.call_off()
    assert (await broken.moving.purge()).remaining == 0
    assert await broken.there() == 0


async def _apply(site: Site, document: str) -> None:
    request = policy_service_pb2.ApplyPolicyRequest(document=document, author="test")
    await site["fra"].policies.ApplyPolicy(request, timeout=10)


async def test_an_import_is_refused_by_a_gateway_that_cannot_know_the_law(broken: Setting):
    """Law L6."""
    await broken.moving.seen(Phase.COPYING)
    await broken.store.cut()
    await until(lambda: not broken.site["ams"].gateway.view.is_fresh)
    assert (await refusal(_rest(broken.importing())))[:2] == ("UNAVAILABLE", "TABLE_TOO_OLD")
    assert await broken.there() == 0
    await broken.store.heal()
    await until(lambda: broken.site["ams"].gateway.view.is_fresh)
    assert (await broken.moving.copy()).is_done


async def test_an_open_is_not_refused_by_a_law_that_came_after_the_switch(broken: Setting):
    """What is open can be moved on; a shard that nobody may open would keep its rows for ever where they may not be."""
    await broken.moving.copy()
    await broken.moving.drain()
    last = await broken.moving.close()
    await _apply(broken.site, LAW_OF_TWO)
    await broken.moving.switch(last)
    await broken.moving.seen(Phase.PURGING)


async def _rest(call: grpc.aio.UnaryStreamCall) -> list[pb.ImportShardResponse]:
    """What an import still tells."""
    messages: list[pb.ImportShardResponse] = []
    async with asyncio.timeout(30):
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
    return messages
