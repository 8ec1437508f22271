"""The commands around policies, rollouts, shards and IDCs, as a shell sees them."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
import structlog

from policy.records import MoveRecord
from regiongate.cli.main import run
from runtime.telemetry.spans import read_spans
from tests.support.cluster import OTHER_WEIGHTS, POLICY, WITHOUT_SUPPORT, eventually
from tests.support.policy_gateway import policy_gateway
from tests.support.standing_shards import assign_all, carry_out, carry_out_all, plan_of, switch

EU_TO_SG = POLICY.replace(
    "jurisdictions: [EU], idcs: {fra: 50, ams: 50}", "jurisdictions: [SG], idcs: {sin: 100}"
).replace("from: [SG], operations", "from: [EU], operations")


@pytest.fixture
async def address(etcd, cluster):
    async with policy_gateway(cluster, etcd.endpoint) as (address, *_):
        yield address


@pytest.fixture
async def serving(address, cluster):
    await cluster.apply()
    await assign_all(cluster)
    return address


@pytest.fixture
def regiongate(capsys, tmp_path):
    """Runs a command; returns its exit code, stdout and stderr."""
    traces = tmp_path / "stack" / "traces"
    traces.mkdir(parents=True)

    async def command(address, *words):
        target = ("--target", address, "--data-dir", str(traces.parent)) if address else ()
        code = await asyncio.to_thread(run, [*map(str, words), *target])
        return code, *capsys.readouterr()

    with structlog.testing.capture_logs():  # of the gateway, which is in this process
        yield command


@pytest.fixture
def write(tmp_path):
    def file(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return file


@asynccontextmanager
async def controller(cluster):
    playing = asyncio.create_task(carry_out_all(cluster))
    yield
    playing.cancel()


async def test_the_commands_plan_apply_show_and_explain(address, cluster, regiongate, write):
    file = write("policy.yaml", POLICY)
    code, out, err = await regiongate(address, "policy", "plan", file)
    assert code == 0, err
    assert "assigned: 4 shards of CN to sha" in out
    code, out, err = await regiongate(address, "policy", "apply", file, "--no-wait", "-m", "first", "-o", "json")
    assert code == 0, err
    assert json.loads(out)["revision"] == 1
    assert "rollout watch r00000001" in err
    code, shown, err = await regiongate(address, "policy", "show")
    assert (code, shown) == (0, POLICY)
    assert err.startswith("revision 1 by ")
    _, history, _ = await regiongate(address, "policy", "history", "-o", "json")
    assert [(record["revision"], record["message"]) for record in json.loads(history)] == [(1, "first")]
    words = ("policy", "explain", "customers", "DE", "--from", "sin", "--purpose", "support")
    _, why, _ = await regiongate(address, *words)
    assert why.splitlines()[-1] == "4. allowed by rule eu-support, policy revision 1, without name"


async def test_a_plan_that_moves_shards_is_readable_and_exits_well(serving, cluster, regiongate, write):
    done = MoveRecord("r00000001", "DE", 1, "ams", "fra", "done", rows=5000, rows_per_second=50.0, end_time="x")
    await cluster.client.put(cluster.keys.move("r00000001", "DE", 1), done.encode())
    code, out, err = await regiongate(serving, "policy", "plan", write("law.yaml", EU_TO_SG))
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "from revision 1"
    assert "access law: EU may be stored in SG, was EU" in lines
    assert "    for example: rows of DE may lie in sin; could lie in ams or fra" in lines
    assert "holding: sin will hold; ams and fra will hold no more rows of DE and FR" in lines
    assert "moved: 2 shards of DE from ams to sin, 1,000 rows, 128.0 kB (the law demands it)" in lines
    assert lines[-1] == (
        "in all: 8 shards to move, 4,000 rows, 512.0 kB; about 40 s, as fast as earlier moves have copied"
    )
    code, out, _ = await regiongate(serving, "policy", "plan", write("less.yaml", WITHOUT_SUPPORT))
    assert code == 0
    lost = "from SG, read of customers in EU for purpose support: denied, was allowed by eu-support without name"
    assert f"access lost: {lost}" in out.splitlines()
    assert "moved" not in out


async def test_a_plan_that_cannot_be_applied_exits_with_1(serving, regiongate, write):
    code, _, err = await regiongate(
        serving, "policy", "plan", write("bad.yaml", POLICY.replace("shards: 4}", "shards: 5}"))
    )
    assert code == 1
    assert "SHARDS_FIXED" in err
    assert "applying it would be refused" in err


async def test_applying_follows_the_moves_line_by_line_without_control_characters(serving, cluster, regiongate, write):
    file = write("heavier.yaml", OTHER_WEIGHTS)
    async with controller(cluster):
        code, out, err = await regiongate(serving, "policy", "apply", file)
    assert (code, out) == (0, "2\n"), err
    assert "DE/1 ams -> fra: done, 1,234 rows, writes held for 42 ms" in err
    assert "FR/1 ams -> fra: done, 1,234 rows, writes held for 42 ms" in err
    assert "rollout r00000002 is done: 2 of 2 shards" in err
    assert err.isascii()
    assert all(character >= " " for line in err.splitlines() for character in line)


async def test_applying_starts_a_trace_that_the_rollout_carries_on(serving, cluster, regiongate, write, tmp_path):
    code, _, err = await regiongate(serving, "policy", "apply", write("p.yaml", OTHER_WEIGHTS), "--no-wait")
    assert code == 0, err
    (told,) = [line for line in err.splitlines() if line.startswith("trace: regiongate trace show ")]
    trace_id = told.split()[4]
    assert trace_id in (await cluster.store.rollout("r00000002")).traceparent
    (span,) = read_spans(tmp_path / "stack" / "traces", trace_id)
    assert span.name == "cli.policy.apply"


async def test_a_saved_plan_is_applied_or_nothing_is(serving, cluster, regiongate, write):
    file = write("heavier.yaml", OTHER_WEIGHTS)
    _, plan, _ = await regiongate(serving, "policy", "plan", file, "-o", "json")
    saved = write("plan.json", plan)
    await switch(cluster, "DE", 0, "fra")
    code, _, err = await regiongate(serving, "policy", "apply", file, "--plan", saved, "--no-wait")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: PLAN_CHANGED: ")
    saved.write_text((await regiongate(serving, "policy", "plan", file, "-o", "json"))[1])
    assert (await regiongate(serving, "policy", "apply", file, "--plan", saved, "--no-wait"))[0] == 0
    code, _, err = await regiongate(serving, "policy", "apply", file, "--plan", write("x.json", "{}"))
    assert code == 1
    assert "error: BAD_PLAN: " in err


async def test_rolling_back_shows_the_plan_and_makes_the_old_document_a_new_revision(serving, cluster, regiongate):
    await cluster.apply(OTHER_WEIGHTS)
    await carry_out(cluster, "r00000002")
    async with controller(cluster):
        code, out, err = await regiongate(serving, "policy", "rollback", "--yes")
    assert code == 0, err
    assert "moved: 1 shard of DE from fra to ams" in out
    record = await cluster.store.revision()
    assert (record.revision, record.parent, record.document, record.message) == (3, 2, POLICY, "rollback to revision 1")
    code, _, err = await regiongate(serving, "policy", "rollback", "3")
    assert code == 1
    assert "NOTHING_TO_ROLL_BACK" in err


async def test_rollouts_are_listed_shown_paused_resumed_and_cancelled(serving, cluster, regiongate):
    code, out, err = await regiongate(serving, "shards", "move", "DE/0", "--to", "fra", "-m", "closer")
    assert (code, out) == (0, "m00000001\n"), err
    _, listed, _ = await regiongate(serving, "policy", "rollout", "-o", "json")
    assert [(it["rollout"], it["kind"], it["state"]) for it in json.loads(listed)] == [
        ("m00000001", "move", "running"), ("r00000001", "policy", "done")
    ]  # fmt: skip
    assert (await regiongate(serving, "policy", "rollout", "list", "-o", "json"))[1] == listed
    _, shown, _ = await regiongate(serving, "policy", "rollout", "show", "m00000001")
    assert [line.split()[:4] for line in shown.splitlines()[1:]] == [["DE/0", "ams", "fra", "waiting"]]
    assert "is paused" in (await regiongate(serving, "policy", "rollout", "pause", "m00000001"))[2]
    assert "is running" in (await regiongate(serving, "policy", "rollout", "resume", "m00000001"))[2]
    code, _, err = await regiongate(serving, "policy", "rollout", "cancel", "m00000001")
    assert (code, "is being cancelled" in err) == (0, True)
    await carry_out(cluster, "m00000001")
    code, _, err = await regiongate(serving, "policy", "rollout", "m00000001")
    assert code == 1
    assert "rollout m00000001 is cancelled" in err
    code, _, err = await regiongate(serving, "policy", "rollout", "cancel", "m00000001")
    assert code == 1
    assert err.startswith("error: ILLEGAL_MOVE: ")


async def test_cancelling_tells_what_goes_on(serving, cluster, regiongate):
    await cluster.apply(EU_TO_SG)
    await switch(cluster, "DE", 0, "sin", "r00000002")
    code, _, err = await regiongate(serving, "policy", "rollout", "cancel", "r00000002")
    assert code == 0
    assert "8 moves will go on: " in err


async def test_shards_show_where_they_are_going_and_unknown_ones_are_errors(serving, cluster, regiongate):
    await regiongate(serving, "shards", "move", "DE/0", "--to", "fra")
    _, out, _ = await regiongate(serving, "shards", "list", "DE", "-o", "json")
    assert [(it["shard"], it["idc"], it["phase"], it["target"]) for it in json.loads(out)][:2] == [
        (0, "ams", "serving", "fra"), (1, "ams", "serving", "")
    ]  # fmt: skip
    code, _, err = await regiongate(serving, "shards", "list", "XX")
    assert code == 1
    assert err.startswith("error: UNKNOWN_REGION: ")
    code, _, err = await regiongate(serving, "shards", "move", "DE/0", "--to", "sin")
    assert code == 1
    assert "[rule europe, policy_revision 1]" in err or "residency rule europe" in err
    assert (await regiongate(serving, "shards", "move", "DE", "--to", "fra"))[0] == 2


async def test_moving_a_shard_can_be_waited_for(serving, cluster, regiongate):
    async with controller(cluster):
        code, _, err = await regiongate(serving, "shards", "move", "DE/0", "--to", "fra", "--wait")
    assert code == 0, err
    assert "DE/0 ams -> fra: done" in err


async def test_an_idc_is_drained_and_undrained(serving, cluster, regiongate):
    async with controller(cluster):
        code, _, err = await regiongate(serving, "idc", "drain", "ams", "--wait")
    assert code == 0, err
    assert "rollout d00000001 is done: 4 of 4 shards" in err
    code, _, err = await regiongate(serving, "idc", "drain", "sha")
    assert code == 0
    assert "4 shards of CN must stay in sha: residency rule china keeps CN in CN, and no other IDC" in err
    _, out, _ = await regiongate(serving, "idc", "list", "-o", "json")
    rows = {it["idc"]: (it["jurisdiction"], it["shards"], it["drained"]) for it in json.loads(out)}
    assert rows["ams"] == ("EU", 0, "yes")
    assert rows["fra"] == ("EU", 8, "")
    assert (await regiongate(serving, "idc", "undrain", "ams"))[0] == 0
    assert (await regiongate(serving, "idc", "undrain", "ams"))[0] == 1


async def test_progress_survives_a_gateway_that_dies(etcd, cluster, regiongate):
    await cluster.apply()
    await assign_all(cluster)
    await cluster.apply(OTHER_WEIGHTS)
    moves = (await plan_of(cluster, "r00000002")).moves
    async with (
        policy_gateway(cluster, etcd.endpoint) as (first, dying, admission),
        policy_gateway(cluster, etcd.endpoint) as (second, *_),
    ):
        following = asyncio.create_task(regiongate(f"{first},{second}", "policy", "rollout", "watch", "r00000002"))
        copying = MoveRecord("r00000002", moves[0].region_code, moves[0].shard, "ams", "fra", "copying", 1)
        await cluster.client.put(cluster.keys.move("r00000002", moves[0].region_code, moves[0].shard), copying.encode())
        await eventually(lambda: admission.operations > 0)  # it is being watched through the first
        await dying.stop(0)
        await carry_out(cluster, "r00000002")
        code, out, err = await asyncio.wait_for(following, 30)
    assert code == 0, err
    assert "done" in out
    assert err.count("DE/1 ams -> fra: done") == 1


async def test_validate_needs_no_gateway_and_names_each_place(regiongate, write):
    file = write("broken.yaml", POLICY.replace("from: [SG]", "from: [XX]").replace("type: int64", "type: int63"))
    code, out, _ = await regiongate("", "policy", "validate", file)
    assert code == 1
    errors = [line for line in out.splitlines() if ": error: " in line]
    assert len(errors) == 2
    assert all(line.startswith(f"{file}:") for line in errors)
