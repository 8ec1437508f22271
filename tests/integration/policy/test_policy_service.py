"""PolicyService over real gRPC, and the commands that speak it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc.aio
import pytest

from gateway.admission import Admission
from gateway.identity import ClientSide
from gateway.ladder import Ladder
from gateway.policy_service import PolicyService
from gateway.settings import GatewaySettings
from gateway.status import error_from_rpc
from policy.errors import (
    InvalidPageToken,
    NoPolicy,
    PolicyNotEffective,
    PolicyRejected,
    RevisionConflict,
    RevisionNotFound,
)
from policy.records import GatewayRecord, RolloutRecord
from regiongate.v1 import policy_service_pb2 as pb
from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub, add_PolicyServiceServicer_to_server
from runtime.telemetry.tracing import Tracing
from tests.support.cluster import OTHER_WEIGHTS, POLICY, WITH_EMAIL, WITHOUT_SUPPORT


@pytest.fixture
async def address(cluster):
    admission = Admission(GatewaySettings(idc="fra", database_url="postgresql://nowhere/none"))
    admission.open()
    ladder = Ladder(admission, ClientSide(), Tracing("gateway", "fra", 0, None), "fra")
    server = grpc.aio.server()
    add_PolicyServiceServicer_to_server(PolicyService(ladder, cluster.store), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
async def stub(address):
    async with grpc.aio.insecure_channel(address) as channel:
        yield PolicyServiceStub(channel)


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def test_a_policy_is_validated_planned_applied_and_read_back(stub):
    assert [f.code for f in (await stub.ValidatePolicy(pb.ValidatePolicyRequest(document=POLICY))).findings] == [
        "IDC_LOSS"
    ] * 4
    plan = await stub.PlanPolicy(pb.PlanPolicyRequest(document=POLICY))
    assert (plan.parent, len(plan.assigned), len(plan.moved)) == (0, 16, 0)
    assert "customers" in plan.schema_changes
    request = pb.ApplyPolicyRequest(document=POLICY, author="ada", message="first", parent=0)
    applied = await stub.ApplyPolicy(request, timeout=5)
    assert (applied.revision, applied.rollout) == (1, "r00000001")
    policy = (await stub.GetPolicy(pb.GetPolicyRequest())).policy
    assert (policy.document, policy.author, policy.message, policy.parent) == (POLICY, "ada", "first", 0)
    assert policy.create_time.ToSeconds() > 0


async def test_findings_come_with_their_place_and_store_nothing(stub):
    broken = POLICY.replace("shards: 4}", "shards: no}")
    findings = (await stub.ValidatePolicy(pb.ValidatePolicyRequest(document=broken, file="p.yaml"))).findings
    assert {(finding.file, finding.severity) for finding in findings} == {("p.yaml", pb.SEVERITY_ERROR)}
    assert all(finding.line for finding in findings)
    assert (await stub.PlanPolicy(pb.PlanPolicyRequest(document=broken))).findings
    error = await failure(stub.ApplyPolicy(pb.ApplyPolicyRequest(document=broken), timeout=5))
    assert isinstance(error, PolicyRejected)
    assert error.findings
    assert isinstance(await failure(stub.GetPolicy(pb.GetPolicyRequest())), NoPolicy)


async def test_who_comes_second_is_told_both_revisions(stub):
    await stub.ApplyPolicy(pb.ApplyPolicyRequest(document=POLICY), timeout=5)
    await stub.ApplyPolicy(pb.ApplyPolicyRequest(document=WITHOUT_SUPPORT, parent=1), timeout=5)
    error = await failure(stub.ApplyPolicy(pb.ApplyPolicyRequest(document=POLICY, parent=1), timeout=5))
    assert isinstance(error, RevisionConflict)
    assert (error.parent, error.current) == (1, 2)


async def test_an_apply_that_a_gateway_does_not_acknowledge_says_for_whom_it_waits(stub, cluster):
    record = GatewayRecord("fra-7", "fra", "", "", 0)
    await cluster.client.put(cluster.keys.gateway("fra", "fra-7"), record.encode())
    error = await failure(stub.ApplyPolicy(pb.ApplyPolicyRequest(document=POLICY), timeout=1))
    assert isinstance(error, PolicyNotEffective)
    assert (error.policy_revision, error.waiting_for) == (1, ("fra-7",))


async def test_the_history_is_listed_in_pages_newest_first_and_without_documents(stub):
    for document in (POLICY, WITHOUT_SUPPORT, POLICY, WITH_EMAIL, WITH_EMAIL):
        await stub.ApplyPolicy(pb.ApplyPolicyRequest(document=document), timeout=5)
    seen, token = [], ""
    while True:
        page = await stub.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(page_size=2, page_token=token))
        seen += [record.revision for record in page.revisions]
        assert not any(record.document for record in page.revisions)
        token = page.next_page_token
        if not token:
            break
    assert seen == [5, 4, 3, 2, 1]
    assert isinstance(await failure(stub.GetPolicy(pb.GetPolicyRequest(revision=6))), RevisionNotFound)
    for broken in ("x", "cm9sbG91dDoz", "!!"):
        call = stub.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(page_token=broken))
        assert isinstance(await failure(call), InvalidPageToken)


async def test_a_rollout_is_watched_until_it_has_ended(stub, cluster):
    applied = await stub.ApplyPolicy(pb.ApplyPolicyRequest(document=POLICY), timeout=5)
    watch = stub.WatchRollout(pb.WatchRolloutRequest(rollout=applied.rollout), timeout=10)
    states = aiter(watch)
    first = (await anext(states)).rollout
    assert (first.state, first.shards_done, first.shards_total) == ("running", 0, 16)
    done = RolloutRecord(applied.rollout, 1, "done", "2026-01-01T00:00:00+00:00", 16, 16)
    await cluster.client.put(cluster.keys.rollout(applied.rollout), done.encode())
    assert (await anext(states)).rollout.state == "done"
    with pytest.raises(StopAsyncIteration):
        await anext(states)
    listed = (await stub.ListRollouts(pb.ListRolloutsRequest())).rollouts
    assert [rollout.rollout for rollout in listed] == [applied.rollout]
    error = await failure(stub.GetRollout(pb.GetRolloutRequest(rollout="nothing")))
    assert isinstance(error, RevisionNotFound)


async def command(address, *words):
    """Runs `regiongate policy ...`; returns exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("regiongate"), "policy", *map(str, words), "--target", address),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_commands_plan_apply_show_and_explain(address, tmp_path):
    file, heavier = tmp_path / "policy.yaml", tmp_path / "heavier.yaml"
    file.write_text(POLICY)
    heavier.write_text(OTHER_WEIGHTS)
    code, out, _ = await command(address, "plan", file)
    assert code == 0
    assert "assigned: 4 shards of CN to sha" in out
    code, out, err = await command(address, "apply", file, "--no-wait", "-m", "first", "-o", "json")
    assert code == 0, err
    assert json.loads(out)["revision"] == 1
    (code, shown, err), (_, history, _), (_, why, _), (moving, plan, _), (refused, _, told) = await asyncio.gather(
        command(address, "show"),
        command(address, "history", "-o", "json"),
        command(address, "explain", "customers", "DE", "--from", "sin", "--purpose", "support"),
        command(address, "plan", heavier),
        command(address, "apply", heavier),
    )
    assert (code, shown) == (0, POLICY), err
    assert [(record["revision"], record["message"]) for record in json.loads(history)] == [(1, "first")]
    assert why.splitlines()[-1] == "4. allowed by rule eu-support, policy revision 1, without name"
    assert moving == 1
    assert "moved: 1 shard of DE from ams to fra" in plan
    assert refused == 1
    assert told.startswith("error: ILLEGAL_MOVE: ")


async def test_validate_needs_no_gateway_and_names_each_place(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.replace("from: [SG]", "from: [XX]").replace("type: int64", "type: int63"))
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("regiongate"), "policy", "validate", file),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 1
    errors = [line for line in out.decode().splitlines() if ": error: " in line]
    assert len(errors) == 2
    assert all(line.startswith(f"{file}:") for line in errors)
