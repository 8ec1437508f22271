"""Orders to jobs: carried out in every IDC that is meant, recorded before that, and without a word of any row."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest
import pytest_asyncio

from regiongate.v1 import job_service_pb2 as pb
from regiongate.v1 import policy_service_pb2
from rowstore.jobs import firings, registry
from tests.support.gateways import refusal, running_site, until
from tests.support.job_site import JobSite, filled, job_site
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIGNED = {"author": "ada", "message": "because"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with job_site(etcd.endpoint, postgres_server) as running:
        yield running


async def recorded(site: JobSite, job: str) -> list[dict[str, object]]:
    """The audit entries about a job."""
    request = policy_service_pb2.ListAuditEntriesRequest(page_size=1000)
    answer = await site.site["fra"].policies.ListAuditEntries(request, timeout=10)
    found = [json.loads(entry.content) for entry in answer.entries if entry.kind == "job"]
    return [content for content in found if content["job"] == job]


async def test_a_trigger_fires_once_in_each_idc_by_its_own_clock(site: JobSite):
    await site.register("settle")
    answer = await site.jobs("ams").TriggerJob(pb.TriggerJobRequest(job="settle", **SIGNED), timeout=10)
    assert [firing.idc for firing in answer.firings] == ["ams", "fra"]
    for firing in answer.firings:
        (known,) = await firings.open_firings(site.databases[firing.idc].fetch, "settle")
        assert (known.origin, known.scheduled_time) == (
            "manual",
            firing.scheduled_time.ToDatetime(known.scheduled_time.tzinfo),
        )
    (entry,) = await recorded(site, "settle")
    assert entry == {"order": "trigger", "job": "settle", "idcs": ["ams", "fra"], **SIGNED}


async def test_an_order_goes_to_the_idcs_that_are_named_and_know_the_job(site: JobSite):
    await site.register("somewhere", "ams")
    answer = await site.jobs("fra").TriggerJob(pb.TriggerJobRequest(job="somewhere"), timeout=10)
    assert [firing.idc for firing in answer.firings] == ["ams"]
    await site.register("named")
    answer = await site.jobs("fra").PauseJob(pb.PauseJobRequest(job="named", idcs=["ams"]), timeout=10)
    assert list(answer.idcs) == ["ams"]
    assert not (await registry.list_jobs(site.databases["fra"].fetch, "named"))[0].is_paused
    assert [(entry["order"], entry["idcs"]) for entry in await recorded(site, "named")] == [("pause", ["ams"])]


async def test_a_long_running_job_cannot_be_triggered_anywhere(site: JobSite):
    await site.register("tail", kind="long-running")
    for entry in ("fra", "ams"):
        code, reason, metadata = await refusal(
            site.jobs(entry).TriggerJob(pb.TriggerJobRequest(job="tail"), timeout=10)
        )
        assert (code, reason, metadata["field_name"]) == ("INVALID_ARGUMENT", "INVALID_INPUT", "job")
    assert await recorded(site, "tail") == []
    from_ams = [("x-regiongate-ingress", "ams")]
    call = site.site["fra"].peer_jobs.TriggerJob(pb.TriggerJobRequest(job="tail"), timeout=10, metadata=from_ams)
    assert (await refusal(call))[1] == "INVALID_INPUT"


async def test_a_job_is_paused_and_resumed_also_where_it_had_stopped(site: JobSite):
    await site.register("stops")
    await site.stop("stops", "fra")
    paused = await site.jobs("ams").PauseJob(pb.PauseJobRequest(job="stops", **SIGNED), timeout=10)
    assert list(paused.idcs) == ["ams", "fra"]
    listed = (await site.jobs().ListJobs(pb.ListJobsRequest(job="stops"), timeout=10)).jobs
    assert {(job.is_paused, job.paused_by) for job in listed} == {(True, "ada")}
    assert [job.shards_stopped for job in listed] == [0, 1]
    resumed = await site.jobs("ams").ResumeJob(pb.ResumeJobRequest(job="stops", **SIGNED), timeout=10)
    assert list(resumed.idcs) == ["ams", "fra"]
    listed = (await site.jobs().ListJobs(pb.ListJobsRequest(job="stops"), timeout=10)).jobs
    assert {(job.is_paused, job.paused_by, job.shards_stopped) for job in listed} == {(False, "", 0)}
    assert [entry["order"] for entry in await recorded(site, "stops")] == ["pause", "resume"]


async def test_rows_are_replayed_in_each_idc_and_only_counted_on_the_way(site: JobSite):
    await site.register("poison")
    await site.set_aside("poison", "fra", "marker-of-fra")
    await site.set_aside("poison", "ams", "marker-of-ams", "marker-2")
    request = pb.ReplaySetAsideRowsRequest(job="poison", region_code="DE", **SIGNED)
    answer = await site.jobs("fra").ReplaySetAsideRows(request, timeout=10)
    assert {it.idc: it.rows for it in answer.idcs} == {"ams": 2, "fra": 1}
    assert b"marker" not in answer.SerializeToString()
    rows = await site.jobs("ams").ListSetAsideRows(pb.ListSetAsideRowsRequest(job="poison"), timeout=10)
    assert all(row.is_replay_wanted for row in rows.rows)
    (entry,) = await recorded(site, "poison")
    assert entry == {"order": "replay", "job": "poison", "idcs": ["ams", "fra"], "region_code": "DE", **SIGNED}


async def test_an_order_rings_the_doorbell_of_every_idc(site: JobSite):
    await site.register("rung")
    rung = {idc: asyncio.Event() for idc in site.databases}
    connections = [await asyncpg.connect(site.site.databases[idc]) for idc in rung]
    try:
        for idc, connection in zip(rung, connections, strict=True):
            await connection.add_listener(registry.DOORBELL, lambda *_, idc=idc: rung[idc].set())
        await site.jobs().TriggerJob(pb.TriggerJobRequest(job="rung"), timeout=10)
        async with asyncio.timeout(5):
            await asyncio.gather(*(event.wait() for event in rung.values()))
    finally:
        for connection in connections:
            await connection.close()


async def test_nothing_of_a_row_is_in_a_log_line(site: JobSite, capfd: pytest.CaptureFixture[str]):
    await site.register("quiet")
    await site.set_aside("quiet", "fra", "marker-4711")
    await site.stop("quiet", "fra")
    for call in (
        site.jobs().ListSetAsideRows(pb.ListSetAsideRowsRequest(job="quiet"), timeout=10),
        site.jobs("ams").ListJobOffsets(pb.ListJobOffsetsRequest(job="quiet"), timeout=10),
        site.jobs("ams").ReplaySetAsideRows(pb.ReplaySetAsideRowsRequest(job="quiet"), timeout=10),
    ):
        await call
    for method, request in (
        ("ListSetAsideRows", pb.ListSetAsideRowsRequest(job="marker-4711")),
        ("ListSetAsideRows", pb.ListSetAsideRowsRequest(job="quiet", region_code="marker-4711")),
        ("PauseJob", pb.PauseJobRequest(job="marker-4711")),
        ("ListJobs", pb.ListJobsRequest(idcs=["marker-4711"])),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011 (any; what matters is what it says)
            await getattr(site.jobs(), method)(request, timeout=10)
        assert "marker" not in str(caught.value)
    captured = capfd.readouterr()
    assert "marker" not in captured.out + captured.err
    for item in (await site.etcd.list(site.keys.root)).items:
        assert b"marker" not in item.value + item.key.encode()


async def test_without_the_policy_store_no_order_is_given_and_none_is_half_done(etcd, postgres_server):
    async with (
        TcpProxy(int(etcd.endpoint.rpartition(":")[2])) as proxy,
        running_site(f"127.0.0.1:{proxy.port}", postgres_server, "fra", "ams", policy=ONE_LAW) as running,
        filled(running) as site,
    ):
        await site.register("kept")
        await proxy.cut()
        code, reason, _ = await refusal(site.jobs().PauseJob(pb.PauseJobRequest(job="kept"), timeout=8))
        assert (code, reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        for database in site.databases.values():
            assert not (await registry.list_jobs(database.fetch, "kept"))[0].is_paused
        await proxy.heal()
        await until(lambda: set(running["fra"].gateway.view.gateways) == {"ams", "fra"})
        answer = await site.jobs().ListJobs(pb.ListJobsRequest(job="kept"), timeout=20)
        assert [job.idc for job in answer.jobs] == ["ams", "fra"]


ONE_LAW = """\
version: 1
idcs:
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
residency:
  - {name: europe, regions: [DE], jurisdictions: [EU], idcs: {fra: 50, ams: 50}, shards: 2}
datasets:
  customers: {key: string, columns: {spend: {type: int64}}}
"""
