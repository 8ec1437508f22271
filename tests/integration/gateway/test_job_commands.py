"""The commands around jobs, as a shell sees them."""

from __future__ import annotations

import asyncio
import json

import pytest
import pytest_asyncio
import structlog

from regiongate.cli.main import run
from tests.support.job_site import JobSite, job_site

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(etcd, postgres_server):
    async with job_site(etcd.endpoint, postgres_server) as running:
        yield running


@pytest.fixture
def regiongate(capsys, tmp_path, site: JobSite):
    """Runs a command through one gateway; returns its exit code, stdout and stderr."""

    async def command(*words, entry: str = "fra"):
        target = ("--target", str(site.site[entry].gateway.address), "--data-dir", str(tmp_path))
        code = await asyncio.to_thread(run, ["jobs", *words, *target])
        return code, *capsys.readouterr()

    with structlog.testing.capture_logs() as logs:  # of the gateways, which are in this process
        yield command
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_jobs_are_listed_as_a_table_and_as_json(site: JobSite, regiongate):
    await site.register("listed", regions=("DE",))
    await site.handle("listed", "fra")
    await site.runner("fra", "r1.1", "listed")
    code, out, err = await regiongate("list", entry="ams")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines() if line.startswith("listed")]
    assert [(cells[1], cells[2]) for cells in lines] == [("ams", "batch"), ("fra", "batch")]
    assert lines[0][3:5] == ["no", "runner"]
    assert lines[1][3:6] == ["up", "to", "date"]
    code, out, _ = await regiongate("list", "--in", "fra", "-o", "json")
    (job,) = [job for job in json.loads(out) if job["job"] == "listed"]
    assert (job["idc"], job["runners"], job["definition"]) == ("fra", ["r1.1"], {"regions": ["DE"]})
    assert job["rows_handled"] > 0
    assert job["lag_rows"] == 0


async def test_status_tells_of_idcs_runs_and_problems(site: JobSite, regiongate):
    await site.register("sick")
    await site.run("sick", "fra", "run-1")
    await site.stop("sick", "fra")
    await site.set_aside("sick", "ams", "a-key")
    code, out, err = await regiongate("status", "sick")
    assert code == 0, err
    assert "run-1" in out
    told = [line for line in out.splitlines() if line.startswith("problem: ")]
    assert [line for line in told if "no runner" not in line] == [
        "problem: ams: 1 row set aside: regiongate jobs set-aside sick --idc ams",
        told[-1],
    ]
    assert told[-1].startswith("problem: fra: has stopped in 1 shard with ValueError: DE/")
    code, out, _ = await regiongate("status", "sick", "-o", "json")
    shown = json.loads(out)
    assert [job["idc"] for job in shown["jobs"]] == ["ams", "fra"]
    assert [run["run"] for run in shown["runs"]] == ["run-1"]
    assert len(shown["problems"]) == len(told)


async def test_offsets_and_runs_are_listed(site: JobSite, regiongate):
    await site.register("told")
    await site.handle("told", "fra")
    await site.run("told", "ams", "run-of-ams")
    code, out, err = await regiongate("offsets", "told", "--region", "DE")
    assert code == 0, err
    assert len(out.splitlines()) == 5
    _, out, _ = await regiongate("offsets", "told", "--in", "fra", "-o", "json")
    assert all(offset["seq"] == offset["last_seq"] > 0 for offset in json.loads(out))
    code, out, _ = await regiongate("runs", "told", "-n", "3")
    assert "run-of-ams" in out
    assert "nothing is left" in out
    _, out, _ = await regiongate("runs", "told", "-o", "json")
    assert [(run["run"], run["rows_handled"]) for run in json.loads(out)] == [("run-of-ams", 7)]


async def test_orders_are_given_from_the_shell(site: JobSite, regiongate):
    await site.register("ordered")
    code, out, err = await regiongate("trigger", "ordered", "--in", "ams", "-o", "json", "-m", "why not")
    assert code == 0, err
    assert [firing["idc"] for firing in json.loads(out)] == ["ams"]
    assert "trace: regiongate trace show" in err
    code, out, err = await regiongate("pause", "ordered", "--author", "ada")
    assert (code, out.split(), "ordered is paused in ams and fra" in err) == (0, ["ams", "fra"], True)
    _, out, _ = await regiongate("status", "ordered", "-o", "json")
    assert {(job["is_paused"], job["paused_by"]) for job in json.loads(out)["jobs"]} == {(True, "ada")}
    code, out, err = await regiongate("resume", "ordered", "-o", "json")
    assert (code, json.loads(out)) == (0, {"idcs": ["ams", "fra"], "unreachable": []})


async def test_rows_that_were_set_aside_are_shown_where_they_are_and_replayed(site: JobSite, regiongate):
    await site.register("poison")
    await site.set_aside("poison", "ams", "a-key-of-ams")
    code, out, err = await regiongate("set-aside", "poison", entry="fra")
    assert code == 0, err
    assert "a-key" not in out + err
    code, out, err = await regiongate("set-aside", "poison", "-o", "json", entry="ams")
    (row,) = json.loads(out)
    assert (row["key"], row["seq"], row["error_class"]) == ("a-key-of-ams", 1, "ValueError")
    assert "1 row set aside in ams, 1 shown" in err
    code, out, err = await regiongate("replay", "poison", entry="fra")
    assert code == 0, err
    assert out.splitlines()[1].split() == ["ams", "1"]
    _, out, _ = await regiongate("set-aside", "poison", entry="ams")
    assert "wanted" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("status", "no-such-job"), "error: UNKNOWN_JOB: no job of this name was ever run in ams and fra\n"),
        (("list", "--in", "xxx"), "error: UNKNOWN_IDC: the policy has no such IDC; it has ams and fra"),
        (("trigger", "tail"), "error: INVALID_INPUT: a long-running job goes on as changes come"),
    ],
)
async def test_what_cannot_be_done_is_one_line_and_exit_code_1(site: JobSite, regiongate, words, told):
    await site.register("tail", kind="long-running")
    code, out, err = await regiongate(*words)
    assert (code, out) == (1, "")
    assert told in err


async def test_the_trail_tells_of_orders_to_jobs(site: JobSite, capsys):
    await site.register("audited")
    target = ("--target", str(site.site["fra"].gateway.address))
    with structlog.testing.capture_logs():
        assert await asyncio.to_thread(run, ["jobs", "pause", "audited", "--author", "ada", "-m", "why", *target]) == 0
        capsys.readouterr()
        assert await asyncio.to_thread(run, ["audit", "export", "-o", "table", *target]) == 0
        assert '"author":"ada","idcs":["ams","fra"],"job":"audited","message":"why","order":"pause"' in "".join(
            capsys.readouterr().out.split()
        )
        assert await asyncio.to_thread(run, ["audit", "verify", *target]) == 0
    assert " job" in capsys.readouterr().out.splitlines()[0]
