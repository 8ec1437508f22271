"""JobService: what the jobs of all IDCs are told to be, from any gateway, and what never leaves its IDC."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from policy.records import GatewayRecord
from regiongate.v1 import job_service_pb2 as pb
from rowstore.jobs.model import RunResult
from tests.support.gateways import EUROPE, refusal, running_gateway, running_site, until
from tests.support.job_site import IDCS, ROWS, JobSite, filled, job_site, write_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

FROM_SIN = [("x-regiongate-origin", "sin")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with job_site(etcd.endpoint, postgres_server) as running:
        yield running


async def list_jobs(site: JobSite, job: str, idc: str = "fra", *idcs: str) -> pb.ListJobsResponse:
    return await site.jobs(idc).ListJobs(pb.ListJobsRequest(job=job, idcs=idcs), timeout=10)


@pytest.mark.parametrize("entry", IDCS)
async def test_any_gateway_tells_how_a_job_stands_in_every_idc(site: JobSite, entry: str):
    job = f"settle-{entry}"
    await site.register(job, regions=("DE",))
    await site.handle(job, "ams")
    await site.runner("ams", f"b.{job}", job)
    await site.runner("ams", f"a.{job}", "other", job)
    answer = await list_jobs(site, job, entry)
    ams, fra = answer.jobs
    assert (ams.idc, fra.idc, list(answer.unreachable)) == ("ams", "fra", [])
    assert (ams.dataset, ams.scan, ams.kind, ams.definition) == (
        "customers", "per shard", "batch", json.dumps({"regions": ["DE"]})
    )  # fmt: skip
    assert (list(ams.runners), list(fra.runners)) == ([f"a.{job}", f"b.{job}"], [])
    assert ams.shards + fra.shards == 4
    assert (ams.shards_behind, ams.lag_rows, ams.HasField("last_success")) == (0, 0, True)
    assert (fra.shards_behind, fra.HasField("last_success")) == (fra.shards, False)
    assert fra.lag_seconds > 0
    assert ams.rows_handled + fra.lag_rows == ROWS


async def test_jobs_are_listed_by_name_and_only_in_the_idcs_asked_for(site: JobSite):
    await site.register("listed-b")
    await site.register("listed-a", "ams")
    found = [(job.job, job.idc) for job in (await list_jobs(site, "")).jobs if job.job.startswith("listed")]
    assert found == [("listed-a", "ams"), ("listed-b", "ams"), ("listed-b", "fra")]
    only = await list_jobs(site, "listed-b", "ams", "fra")
    assert [job.idc for job in only.jobs] == ["fra"]


async def test_a_job_that_one_idc_has_never_run_is_told_by_the_others(site: JobSite):
    await site.register("elsewhere", "ams")
    assert [job.idc for job in (await list_jobs(site, "elsewhere")).jobs] == ["ams"]
    offsets = await site.jobs().ListJobOffsets(pb.ListJobOffsetsRequest(job="elsewhere"), timeout=10)
    assert {offset.idc for offset in offsets.offsets} == {"ams"}


async def test_a_group_in_a_definition_is_what_the_policy_says_and_no_unknown_name_hides_the_rest(site: JobSite):
    await site.register("by-group", regions=("NO-SUCH-GROUP", "DE"))
    await site.register("nowhere", regions=("FR",))
    assert sum(job.shards for job in (await list_jobs(site, "by-group")).jobs) == 4
    assert [job.shards for job in (await list_jobs(site, "nowhere")).jobs] == [0, 0]


async def test_offsets_of_all_shards_are_told_with_who_and_how_far(site: JobSite):
    await site.register("offsets")
    await site.handle("offsets", "fra")
    await site.stop("offsets", "ams")
    request = pb.ListJobOffsetsRequest(job="offsets", region_code="DE")
    answer = await site.jobs("ams").ListJobOffsets(request, timeout=10)
    assert [(it.idc, it.region_code) for it in answer.offsets] == [("ams", "DE")] * 2 + [("fra", "DE")] * 2
    stopped, other, *handled = answer.offsets
    assert (stopped.is_stopped, stopped.failures, stopped.last_error) == (True, 1, "ValueError")
    assert (other.is_stopped, other.seq, other.runner) == (False, 0, "r1")
    assert other.lag_seconds > 0
    for offset in handled:
        assert (offset.seq, offset.rows_handled) == (offset.last_seq, offset.last_seq)
        assert (offset.token, offset.lag_seconds) == (1, 0)
        assert offset.epoch >= 1


async def test_runs_of_all_idcs_come_newest_first(site: JobSite):
    await site.register("runs")
    for number, idc in enumerate(("fra", "ams", "fra")):
        await site.run("runs", idc, f"run-{number}", RunResult.DONE if number else RunResult.FAILED)
    answer = await site.jobs().ListJobRuns(pb.ListJobRunsRequest(job="runs"), timeout=10)
    assert [(run.run, run.idc) for run in answer.runs] == [("run-2", "fra"), ("run-1", "ams"), ("run-0", "fra")]
    newest, _, oldest = answer.runs
    assert (newest.result, oldest.result) == ("done", "failed")
    assert (newest.rows_handled, newest.batches, newest.shards, newest.policy_revision) == (7, 1, 2, 1)
    assert newest.HasField("end_time")
    assert not newest.HasField("scheduled_time")
    few = await site.jobs().ListJobRuns(pb.ListJobRunsRequest(job="runs", page_size=1), timeout=10)
    assert [run.run for run in few.runs] == ["run-2", "run-1"]


async def test_rows_that_were_set_aside_are_told_by_their_own_idc_only(site: JobSite):
    await site.register("poison")
    await site.set_aside("poison", "fra", "a-key-of-fra")
    await site.set_aside("poison", "ams", "a-key-of-ams", "another")
    for idc, keys in (("fra", ["a-key-of-fra"]), ("ams", ["a-key-of-ams", "another"])):
        answer = await site.jobs(idc).ListSetAsideRows(pb.ListSetAsideRowsRequest(job="poison"), timeout=10)
        assert (answer.idc, [row.key for row in answer.rows], answer.total) == (idc, keys, len(keys))
    row = answer.rows[0]
    assert (row.attempts, row.error_class, row.error) == (5, "ValueError", "cannot digest a-key-of-ams")
    assert row.HasField("set_aside_time")
    assert not row.is_replay_wanted
    few = await site.jobs("ams").ListSetAsideRows(pb.ListSetAsideRowsRequest(job="poison", page_size=1), timeout=10)
    assert (len(few.rows), few.total) == (1, 2)
    counts = {job.idc: job.rows_set_aside for job in (await list_jobs(site, "poison")).jobs}
    assert counts == {"fra": 1, "ams": 2}


async def test_no_peer_and_no_client_from_elsewhere_is_told_a_key(site: JobSite):
    await site.register("secret")
    await site.set_aside("secret", "fra", "a-key-of-fra")
    request = pb.ListSetAsideRowsRequest(job="secret")
    from_ams = [("x-regiongate-ingress", "ams")]
    for call in (
        site.site["fra"].peer_jobs.ListSetAsideRows(request, timeout=5, metadata=from_ams),
        site.site["fra"].peer_jobs.ListSetAsideRows(request, timeout=5),
        site.jobs().ListSetAsideRows(request, timeout=5, metadata=FROM_SIN),
    ):
        assert (await refusal(call))[:2] == ("PERMISSION_DENIED", "ACCESS_DENIED")


async def test_rows_of_a_shard_that_an_idc_does_not_serve_are_neither_told_nor_replayed(site: JobSite):
    await site.register("left")
    await site.set_aside("left", "fra", "a-key")
    (fence,) = await site.databases["fra"].fetch(
        "SELECT region_code, shard, mode FROM shard_fences AS f WHERE EXISTS"
        " (SELECT FROM job_set_aside AS a WHERE job = 'left' AND a.shard = f.shard AND a.region_code = f.region_code)"
    )
    set_mode = "UPDATE shard_fences SET mode = $3 WHERE region_code = $1 AND shard = $2"
    await site.databases["fra"].fetch(set_mode, fence["region_code"], fence["shard"], "closed")
    try:
        answer = await site.jobs().ListSetAsideRows(pb.ListSetAsideRowsRequest(job="left"), timeout=10)
        assert (list(answer.rows), answer.total) == ([], 0)
        request = pb.ReplaySetAsideRowsRequest(job="left", idcs=["fra"])
        replayed = await site.jobs().ReplaySetAsideRows(request, timeout=10)
        assert [(it.idc, it.rows) for it in replayed.idcs] == [("fra", 0)]
    finally:
        await site.databases["fra"].fetch(set_mode, fence["region_code"], fence["shard"], fence["mode"])


@pytest.mark.parametrize(
    ("method", "request_", "refused"),
    [
        ("ListJobs", pb.ListJobsRequest(job="none"), ("NOT_FOUND", "UNKNOWN_JOB", {})),
        ("ListJobRuns", pb.ListJobRunsRequest(job="none"), ("NOT_FOUND", "UNKNOWN_JOB", {})),
        ("ListJobOffsets", pb.ListJobOffsetsRequest(job="none"), ("NOT_FOUND", "UNKNOWN_JOB", {})),
        ("ListSetAsideRows", pb.ListSetAsideRowsRequest(job="none"), ("NOT_FOUND", "UNKNOWN_JOB", {})),
        ("TriggerJob", pb.TriggerJobRequest(job="none"), ("NOT_FOUND", "UNKNOWN_JOB", {})),
        ("PauseJob", pb.PauseJobRequest(job="none"), ("NOT_FOUND", "UNKNOWN_JOB", {})),
        ("ResumeJob", pb.ResumeJobRequest(job="none"), ("NOT_FOUND", "UNKNOWN_JOB", {})),
        ("ReplaySetAsideRows", pb.ReplaySetAsideRowsRequest(job="none"), ("NOT_FOUND", "UNKNOWN_JOB", {})),
        ("ListJobs", pb.ListJobsRequest(idcs=["fra", "xxx"]), ("INVALID_ARGUMENT", "UNKNOWN_IDC", "idcs")),
        ("PauseJob", pb.PauseJobRequest(job="known", idcs=["xxx"]), ("INVALID_ARGUMENT", "UNKNOWN_IDC", "idcs")),
        ("ListJobRuns", pb.ListJobRunsRequest(), ("INVALID_ARGUMENT", "INVALID_INPUT", "job")),
        ("ResumeJob", pb.ResumeJobRequest(), ("INVALID_ARGUMENT", "INVALID_INPUT", "job")),
        (
            "ListJobRuns",
            pb.ListJobRunsRequest(job="known", page_size=1001),
            ("INVALID_ARGUMENT", "INVALID_INPUT", "page_size"),
        ),
        (
            "ListSetAsideRows",
            pb.ListSetAsideRowsRequest(job="known", page_size=-1),
            ("INVALID_ARGUMENT", "INVALID_INPUT", "page_size"),
        ),
        (
            "ListJobOffsets",
            pb.ListJobOffsetsRequest(job="known", region_code="ZZ"),
            ("INVALID_ARGUMENT", "UNKNOWN_REGION", "region_code"),
        ),
        (
            "ReplaySetAsideRows",
            pb.ReplaySetAsideRowsRequest(job="known", region_code="ZZ"),
            ("INVALID_ARGUMENT", "UNKNOWN_REGION", "region_code"),
        ),
        (
            "ListSetAsideRows",
            pb.ListSetAsideRowsRequest(job="known", region_code="ZZ"),
            ("INVALID_ARGUMENT", "UNKNOWN_REGION", "region_code"),
        ),
        (
            "PauseJob",
            pb.PauseJobRequest(job="known", author="x" * 5000),
            ("INVALID_ARGUMENT", "INVALID_INPUT", "author"),
        ),
    ],
)
async def test_what_does_not_exist_or_is_out_of_bounds_is_refused_by_name(site: JobSite, method, request_, refused):
    await site.register("known")
    code, reason, metadata = await refusal(getattr(site.jobs(), method)(request_, timeout=10))
    expected = {"field_name": refused[2]} if refused[2] else {}
    assert (code, reason, metadata) == (refused[0], refused[1], expected)


async def test_a_peer_states_where_a_call_has_entered_and_is_told_of_one_idc(site: JobSite):
    await site.register("asked")
    peer = site.site["ams"].peer_jobs
    assert (await refusal(peer.ListJobs(pb.ListJobsRequest(job="asked"), timeout=5)))[1] == "INVALID_INPUT"
    from_fra = [("x-regiongate-ingress", "fra")]
    answer = await peer.ListJobs(pb.ListJobsRequest(job="asked"), timeout=5, metadata=from_fra)
    assert [job.idc for job in answer.jobs] == ["ams"]


async def test_an_idc_that_is_down_or_does_not_answer_is_named_and_the_others_answer(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server, "fra", policy="") as running:
        async with running_gateway(running, "ams") as ams:
            await until(lambda: ams.gateway.is_open)
            await running.apply(EUROPE, "fra")
            await write_rows(running)
        gateway = running["fra"].gateway
        await until(lambda: "ams" not in gateway.view.gateways)
        async with filled(running) as site:
            await site.register("half")
            answer = await list_jobs(site, "half")
            assert [job.idc for job in answer.jobs] == ["fra"]
            assert list(answer.unreachable) == ["ams"]
            paused = await site.jobs().PauseJob(pb.PauseJobRequest(job="half"), timeout=10)
            assert (list(paused.idcs), list(paused.unreachable)) == (["fra"], ["ams"])
            code, reason, _ = await refusal(
                site.jobs().PauseJob(pb.PauseJobRequest(job="half", idcs=["ams"]), timeout=5)
            )
            assert (code, reason) == ("UNAVAILABLE", "PEER_UNREACHABLE")
            # Nobody knows whether ams has run it.
            code, reason, _ = await refusal(site.jobs().ListJobs(pb.ListJobsRequest(job="none"), timeout=5))
            assert (code, reason) == ("UNAVAILABLE", "PEER_UNREACHABLE")
            async with mute_gateway(site, "ams"):
                await until(lambda: "ams" in gateway.view.gateways)
                answer = await site.jobs().ListJobs(pb.ListJobsRequest(job="half"), timeout=2)
                assert ([job.idc for job in answer.jobs], list(answer.unreachable)) == (["fra"], ["ams"])


@asynccontextmanager
async def mute_gateway(site: JobSite, idc: str) -> AsyncIterator[None]:
    """What looks like a live gateway, takes connections, and never says a word."""
    closing = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await closing.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    key = site.keys.gateway(idc, "mute")
    await site.etcd.put(key, GatewayRecord("mute", idc, address, address, 1, 1).encode())
    try:
        yield
    finally:
        await site.etcd.delete(key)
        closing.set()
        server.close()
