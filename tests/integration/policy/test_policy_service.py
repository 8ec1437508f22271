"""PolicyService over real gRPC."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import grpc.aio
import pytest

from gateway.admission import Admission
from gateway.identity import ClientSide
from gateway.ladder import Ladder
from gateway.policy_service import PolicyService
from gateway.rollout_view import watch_rollout
from gateway.settings import GatewaySettings
from gateway.status import error_from_rpc
from policy.errors import (
    AccessDenied,
    IllegalMove,
    InvalidPageToken,
    NoPolicy,
    PlanChanged,
    PolicyNotEffective,
    PolicyRejected,
    RevisionConflict,
    RevisionNotFound,
)
from policy.records import GatewayRecord, MoveRecord, RolloutRecord
from regiongate.v1 import policy_service_pb2 as pb
from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub, add_PolicyServiceServicer_to_server
from runtime.telemetry.tracing import Tracing
from tests.support.cluster import OTHER_WEIGHTS, POLICY, WITH_EMAIL, WITHOUT_SUPPORT
from tests.support.policy_gateway import Sizes
from tests.support.standing_shards import assign_all, end_rollout, switch


@pytest.fixture
async def address(cluster):
    admission = Admission(GatewaySettings(idc="fra", database_url="postgresql://nowhere/none"))
    admission.open()
    ladder = Ladder(admission, ClientSide(), Tracing("gateway", "fra", 0, None), "fra")
    server = grpc.aio.server()
    add_PolicyServiceServicer_to_server(PolicyService(ladder, cluster.store, Sizes()), server)
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


@pytest.fixture
async def serving(stub, cluster):
    """The first policy, with every shard at its first owner."""
    await stub.ApplyPolicy(pb.ApplyPolicyRequest(document=POLICY), timeout=5)
    await assign_all(cluster)
    return stub


async def test_a_plan_tells_what_moves_how_much_that_is_and_who_starts_and_stops_to_hold(serving, cluster):
    lawless = POLICY.replace("idcs: {sha: 100}", "idcs: {sha: 0, hkg: 1}").replace(
        "  fra:", "  hkg: {jurisdiction: CN}\n  fra:", 1
    )
    plan = await serving.PlanPolicy(pb.PlanPolicyRequest(document=OTHER_WEIGHTS))
    assert [(move.region_code, move.from_idc, move.to_idc, move.rows, move.bytes) for move in plan.moved] == [
        ("DE", "ams", "fra", 500, 64_000),
        ("FR", "ams", "fra", 500, 64_000),
    ]
    assert (plan.unreachable, plan.HasField("estimated_seconds")) == ([], False)
    assert len(plan.fingerprint) == 64
    done = MoveRecord("r00000001", "DE", 1, "ams", "fra", "done", rows=5000, rows_per_second=250.0, end_time="x")
    await cluster.client.put(cluster.keys.move("r00000001", "DE", 1), done.encode())
    plan = await serving.PlanPolicy(pb.PlanPolicyRequest(document=OTHER_WEIGHTS))
    assert plan.estimated_seconds == 4.0
    plan = await serving.PlanPolicy(pb.PlanPolicyRequest(document=lawless))
    assert (plan.unreachable, plan.HasField("estimated_seconds")) == (["sha"], False)
    assert not any(move.HasField("rows") for move in plan.moved)
    assert [(it.region_code, it.starts, it.stops) for it in plan.holding_changes] == [("CN", ["hkg"], ["sha"])]


async def test_a_plan_that_was_saved_is_applied_or_nothing_is(serving, cluster):
    plan = await serving.PlanPolicy(pb.PlanPolicyRequest(document=OTHER_WEIGHTS))
    await switch(cluster, "DE", 0, "fra")
    request = pb.ApplyPolicyRequest(document=OTHER_WEIGHTS, plan_fingerprint=plan.fingerprint)
    assert isinstance(await failure(serving.ApplyPolicy(request, timeout=5)), PlanChanged)


async def test_a_rollout_tells_how_far_each_of_its_moves_is(serving, cluster):
    applied = await serving.ApplyPolicy(pb.ApplyPolicyRequest(document=OTHER_WEIGHTS, author="ada"), timeout=5)
    rollout = (await serving.GetRollout(pb.GetRolloutRequest(rollout=applied.rollout))).rollout
    assert (rollout.kind, rollout.author) == ("policy", "ada")
    assert [(move.region_code, move.shard, move.phase) for move in rollout.moves] == [
        ("DE", 1, "waiting"), ("FR", 1, "waiting")
    ]  # fmt: skip
    copying = MoveRecord(
        applied.rollout, "DE", 1, "ams", "fra", "copying", 1, rows=70, rows_per_second=7.0, remaining=3
    )
    await cluster.client.put(cluster.keys.move(applied.rollout, "DE", 1), copying.encode())
    move = (await serving.GetRollout(pb.GetRolloutRequest(rollout=applied.rollout))).rollout.moves[0]
    assert (move.phase, move.attempt, move.rows_copied, move.rows_per_second, move.remaining) == (
        "copying",
        1,
        70,
        7.0,
        3,
    )


async def test_a_watch_tells_all_moves_first_and_then_what_has_changed_a_few_times_a_second(serving, cluster):
    applied = await serving.ApplyPolicy(pb.ApplyPolicyRequest(document=OTHER_WEIGHTS), timeout=5)
    states = aiter(serving.WatchRollout(pb.WatchRolloutRequest(rollout=applied.rollout), timeout=20))
    assert len((await anext(states)).rollout.moves) == 2

    async def write_much():
        for rows in range(300):
            record = MoveRecord(applied.rollout, "DE", 1, "ams", "fra", "copying", 1, rows=rows)
            await cluster.client.put(cluster.keys.move(applied.rollout, "DE", 1), record.encode())

    began = asyncio.get_running_loop().time()
    writing = asyncio.create_task(write_much())
    told = []
    while not told or told[-1].rows_copied < 299:
        rollout = (await anext(states)).rollout
        assert [(move.region_code, move.shard) for move in rollout.moves] == [("DE", 1)]
        told += rollout.moves
    await writing
    assert len(told) <= (asyncio.get_running_loop().time() - began) / 0.1 + 2
    await end_rollout(cluster, await cluster.store.rollout(applied.rollout))
    assert (await anext(states)).rollout.state == "done"


async def test_a_rollout_that_ends_while_a_message_is_on_its_way_is_told_to_have_ended(cluster):
    rollout = (await cluster.apply()).rollout
    slow, quick = watch_rollout(cluster.store, rollout), watch_rollout(cluster.store, rollout)
    async with aclosing(slow), aclosing(quick):
        assert (await anext(slow)).state == (await anext(quick)).state == "running"
        # The slow reader is still busy with its first message.
        await end_rollout(cluster, await cluster.store.rollout(rollout))
        assert [told.state async for told in quick][-1] == "done"
        assert [told.state async for told in slow][-1] == "done"


async def test_a_move_that_another_rollout_has_begun_is_told_by_the_one_that_has_taken_it_over(serving, cluster):
    first = (await serving.MoveShard(pb.MoveShardRequest(region_code="DE", shard=0, to_idc="fra"))).rollout
    copying = MoveRecord(first, "DE", 0, "ams", "fra", "purging", 1, rows=70)
    await cluster.client.put(cluster.keys.move(first, "DE", 0), copying.encode())
    drained = await serving.DrainIdc(pb.DrainIdcRequest(idc="ams"))
    await switch(cluster, "DE", 0, "fra", first)
    rollout = (await serving.GetRollout(pb.GetRolloutRequest(rollout=drained.rollout))).rollout
    found = {(move.region_code, move.shard): (move.phase, move.rows_copied) for move in rollout.moves}
    assert found["DE", 0] == ("purging", 70)
    assert found["DE", 1] == ("waiting", 0)
    ended = (await serving.GetRollout(pb.GetRolloutRequest(rollout=first))).rollout
    assert (ended.state, [move.phase for move in ended.moves]) == ("superseded", ["purging"])


async def test_orders_go_through_any_gateway(serving):
    error = await failure(serving.MoveShard(pb.MoveShardRequest(region_code="DE", shard=0, to_idc="sin")))
    assert isinstance(error, AccessDenied)
    assert error.rule == "europe"
    order = pb.MoveShardRequest(region_code="DE", shard=0, to_idc="fra", author="ada", message="closer")
    rollout = (await serving.MoveShard(order)).rollout
    assert isinstance(await failure(serving.MoveShard(order)), IllegalMove)
    paused = await serving.PauseRollout(pb.PauseRolloutRequest(rollout=rollout))
    assert (paused.rollout.state, paused.rollout.author, paused.rollout.message) == ("paused", "ada", "closer")
    assert (await serving.ResumeRollout(pb.ResumeRolloutRequest(rollout=rollout))).rollout.state == "running"
    cancelled = await serving.CancelRollout(pb.CancelRolloutRequest(rollout=rollout, author="ada"))
    assert (cancelled.rollout.state, len(cancelled.going_on)) == ("cancelling", 0)
    drained = await serving.DrainIdc(pb.DrainIdcRequest(idc="sha", author="ada"))
    assert (drained.rollout, [(it.region_code, len(it.shards)) for it in drained.stuck]) == ("", [("CN", 4)])
    await serving.UndrainIdc(pb.UndrainIdcRequest(idc="sha", author="ada"))
    assert isinstance(await failure(serving.UndrainIdc(pb.UndrainIdcRequest(idc="sha"))), IllegalMove)


async def test_rollouts_of_all_kinds_are_listed_newest_first_in_pages(serving):
    first = (await serving.MoveShard(pb.MoveShardRequest(region_code="DE", shard=0, to_idc="fra"))).rollout
    second = (await serving.MoveShard(pb.MoveShardRequest(region_code="DE", shard=1, to_idc="fra"))).rollout
    drain = (await serving.DrainIdc(pb.DrainIdcRequest(idc="ams"))).rollout
    seen, token = [], ""
    while True:
        page = await serving.ListRollouts(pb.ListRolloutsRequest(page_size=1, page_token=token))
        seen += [rollout.rollout for rollout in page.rollouts]
        token = page.next_page_token
        if not token:
            break
    assert seen == [drain, second, first, "r00000001"]
