"""A shard goes from one gateway's IDC to another's, driven by hand: the test is the controller."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import AsyncExitStack

import grpc.aio
import pytest
import pytest_asyncio

from gateway.client.opening import connect
from policy.model import Phase
from policy.sharding import shard_of
from regiongate.v1 import row_service_pb2 as rows_pb
from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1 import types_pb2
from runtime.etcd import EtcdClient, EtcdSettings
from runtime.telemetry.spans import read_spans
from tests.support.gateways import EUROPE, Site, refusal, running_site
from tests.support.hand_moves import HandMove, stored
from tests.support.workload import Workload, under_load

pytestmark = pytest.mark.asyncio(loop_scope="module")

INGRESS = "x-regiongate-ingress"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server, "fra", "ams", policy=EUROPE, has_controller=False) as site:
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(site: Site):
    async with EtcdClient(EtcdSettings((site.etcd_endpoint,))) as client:
        yield client


def a_move(site: Site, client: EtcdClient, shard: int) -> HandMove:
    """Of the shard, to whichever IDC does not have it."""
    owner = site["fra"].table.route("DE", shard).idc
    return HandMove(site, client, "DE", shard, "ams" if owner == "fra" else "fra")


def keys_in(shard: int, number: int) -> list[str]:
    return list(
        itertools.islice((key for key in map("k{}".format, itertools.count()) if shard_of(key, 4) == shard), number)
    )


async def fill(site: Site, shard: int, number: int, name: str = "") -> None:
    writes = [
        rows_pb.RowWrite(
            region_code="DE",
            key=types_pb2.Key(string_key=key),
            put=rows_pb.RowContent(
                columns={"spend": types_pb2.Value(int64_value=1), "name": types_pb2.Value(string_value=name)}
            ),
        )
        for key in keys_in(shard, number)
    ]
    for start in range(0, len(writes), 1000):
        request = rows_pb.BatchWriteRowsRequest(dataset="customers", writes=writes[start : start + 1000])
        answer = await site["fra"].rows.BatchWriteRows(request, timeout=10)
        assert all(result.version for result in answer.results)


async def test_clients_notice_nothing_of_a_move_and_nothing_is_lost(site: Site, client: EtcdClient):
    """Laws L2, L3 and L4: reads and writes through both gateways and the SDK, while the shard goes to and fro."""
    shard = 0
    writers: dict[str, tuple[int, int]] = {}
    await fill(site, shard, 700)
    keys = [("DE", key) for key in keys_in(shard, 704)[700:]]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect(str(site[idc].gateway.address), direct=direct))
            for idc, direct in (("fra", True), ("ams", False), ("fra", False))
        ]
        workload = Workload(clients, keys, workers=6)
        stop = asyncio.Event()
        bare = [asyncio.create_task(_write_bare(site, idc, shard, stop, writers)) for idc in ("fra", "ams")]
        async with under_load(workload):
            for _ in range(2):
                moving = a_move(site, client, shard)
                await workload.progress(50)
                await moving.whole()
            await workload.progress(50)
        stop.set()
        await asyncio.gather(*bare)
    assert not workload.errors
    assert workload.violations() == []
    owner = site["fra"].table.route("DE", shard).idc
    other = "ams" if owner == "fra" else "fra"
    assert await stored(site, other, "DE", shard) == []
    found = {row["key"]: row for row in await stored(site, owner, "DE", shard)}
    assert len(found) == 700 + len(keys) + len(writers)
    for key, (version, number) in writers.items():
        assert (found[key]["seq"], found[key]["spend"]) == (version, number), "written once, as it was acknowledged"


async def _write_bare(
    site: Site, idc: str, shard: int, stop: asyncio.Event, written: dict[str, tuple[int, int]]
) -> None:
    """Writes without a request_id, each key once for ever: each must succeed, and have been done once."""
    keys = (key for key in map(f"bare-{idc}-{{}}".format, itertools.count()) if shard_of(key, 4) == shard)
    versions: set[int] = set()
    for number, key in enumerate(keys):
        if stop.is_set():
            return
        request = rows_pb.PutRowRequest(dataset="customers", region_code="DE", key=types_pb2.Key(string_key=key))
        request.columns["spend"].int64_value = number
        answer = await site[idc].rows.PutRow(request, timeout=10)
        assert answer.receipt.version not in versions
        versions.add(answer.receipt.version)
        written[key] = (answer.receipt.version, number)


async def test_a_listing_goes_on_over_a_move_that_is_called_off(site: Site, client: EtcdClient):
    shard = 1
    await fill(site, shard, 5, "listed")
    moving = a_move(site, client, shard)
    await moving.start()
    await moving.copy()
    await moving.drain()
    await moving.seen(Phase.DRAINING)
    request = rows_pb.ListRowsRequest(dataset="customers", region_code="DE", filter='name = "listed"')
    before = (await site["fra"].rows.ListRows(request, timeout=5)).rows
    assert set(keys_in(shard, 5)) == {row.key.string_key for row in before}
    await moving.close()
    listing = asyncio.ensure_future(site["fra"].rows.ListRows(request, timeout=10))
    # A row that the listing does not want: the two may come in either order.
    held = asyncio.ensure_future(_put(site, moving.source, keys_in(shard, 6)[-1]))
    assert not (await asyncio.wait((listing, held), timeout=0.1))[0]
    await moving.call_off()
    began = time.monotonic()
    assert [row.key for row in (await listing).rows] == [row.key for row in before]
    assert (await held).receipt.version
    assert time.monotonic() - began < 0.5
    assert len(await stored(site, moving.target, "DE", shard)) == 5
    proof = await moving.purge()
    assert (proof.remaining, proof.deleted["rows_customers"]) == (0, 5)
    assert await stored(site, moving.target, "DE", shard) == []
    await moving.seen(Phase.SERVING)


async def _put(site: Site, idc: str, key: str):
    request = rows_pb.PutRowRequest(dataset="customers", region_code="DE", key=types_pb2.Key(string_key=key))
    request.columns["spend"].int64_value = 7
    return await site[idc].rows.PutRow(request, timeout=10)


async def test_steps_are_refused_to_whom_they_do_not_belong(site: Site, client: EtcdClient):
    """Law L1: a shard's rows are given to the target of its move only; moves are the controller's."""
    moving = a_move(site, client, 2)
    await moving.start()
    source, target = site[moving.source].shards, site[moving.target].shards
    export = pb.ExportShardRequest(move=moving.reference)
    for metadata in ((), ((INGRESS, "sin"),), ((INGRESS, moving.source),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await source.ExportShard(export, metadata=metadata).read()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    forged = pb.ExportShardRequest(move=moving.reference)
    forged.move.target_idc = "sin"
    assert await _reason(source.ExportShard(forged, metadata=((INGRESS, "sin"),), timeout=0.5)) == "TABLE_TOO_OLD"
    hop = ((INGRESS, "ams"),)
    drain = pb.DrainShardRequest(move=moving.reference)
    assert (await refusal(source.DrainShard(drain, metadata=hop, timeout=5)))[1] == "INVALID_INPUT"
    importing = pb.ImportShardRequest(move=moving.reference)
    assert await _reason(target.ImportShard(importing, metadata=hop)) == "INVALID_INPUT"
    # The record does not say that the shard drains, and never says what an older attempt wants.
    assert (await refusal(source.DrainShard(drain, timeout=0.4)))[1] == "TABLE_TOO_OLD"
    drain.move.attempt -= 1
    assert (await refusal(source.DrainShard(drain, timeout=5)))[1] == "STALE_ATTEMPT"
    await moving.copy()
    for idc in (moving.source, moving.target):
        purge = pb.PurgeShardRequest(move=moving.reference)
        assert (await refusal(site[idc].shards.PurgeShard(purge, timeout=0.4)))[1] == "TABLE_TOO_OLD"
    await moving.call_off()
    wrong = pb.PurgeShardRequest(move=moving.reference, expected=pb.ShardDigest(rows=1, digest="00"))
    assert (await refusal(target.PurgeShard(wrong, timeout=5)))[1] == "INVALID_INPUT"
    assert (await refusal(source.PurgeShard(pb.PurgeShardRequest(move=moving.reference), timeout=0.4)))[1] == (
        "TABLE_TOO_OLD"
    )
    await moving.purge()


async def _reason(call) -> str:
    return (await refusal(call.read()))[1]


async def test_how_much_there_is_of_shards_is_told(site: Site):
    await fill(site, 3, 40)
    owner = site["fra"].table.route("DE", 3)
    shards = [pb.ShardRef(region_code="DE", shard=3, epoch=owner.epoch)]
    (size,) = (await site[owner.idc].shards.MeasureShards(pb.MeasureShardsRequest(shards=shards), timeout=5)).sizes
    assert (size.region_code, size.shard, size.rows) == ("DE", 3, 40)


async def test_a_copy_is_one_trace_from_the_controller_over_the_target_to_the_source(etcd, postgres_server, tmp_path):
    traced = {"trace_sample_ratio": 1.0, "trace_directory": str(tmp_path)}
    options = {idc: traced | {"gateway": f"{idc}-1"} for idc in ("fra", "ams")}
    async with (
        running_site(
            etcd.endpoint,
            postgres_server,
            "fra",
            "ams",
            policy=EUROPE,
            options=options.__getitem__,
            has_controller=False,
        ) as site,
        EtcdClient(EtcdSettings((site.etcd_endpoint,))) as client,
    ):
        moving = a_move(site, client, 0)
        await moving.start()
        metadata = (("traceparent", f"00-{'7' * 32}-{'1' * 16}-01"),)
        request = pb.ImportShardRequest(move=moving.reference)
        call = site[moving.target].shards.ImportShard(request, metadata=metadata)
        assert [message async for message in call][-1].is_done
    spans = {span.name: span for span in read_spans(tmp_path) if span.trace_id == "7" * 32}
    assert spans["ImportShard"].attributes["regiongate.idc"] == moving.target
    assert spans["ExportShard"].attributes["regiongate.idc"] == moving.source
    assert spans["ExportShard"].attributes["regiongate.region_code"] == "DE"
    assert spans["ExportShard"].parent_id == spans["ImportShard"].span_id
