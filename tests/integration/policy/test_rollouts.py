"""Orders of operators, and policies that move shards, over a real etcd; the controller's part is put there by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from policy.apply import Draft, apply_policy, prepare
from policy.errors import (
    AccessDenied,
    IllegalMove,
    LimitReached,
    PlanChanged,
    RevisionConflict,
    RevisionNotFound,
    UnknownIdc,
    UnknownRegion,
    UnknownShard,
)
from policy.records import RolloutRecord
from policy.rollouts import Orders, Signature
from policy.standing import MAX_OPEN_ROLLOUTS, read_snapshot
from tests.support.cluster import OTHER_WEIGHTS, POLICY, WITHOUT_SUPPORT, deadline
from tests.support.standing_shards import Interrupted, assign_all, end_rollout, plan_of, read_shard, switch

ADA = Signature("ada", "because", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
EU_TO_SG = POLICY.replace(
    "jurisdictions: [EU], idcs: {fra: 50, ams: 50}", "jurisdictions: [SG], idcs: {sin: 100}"
).replace("from: [SG], operations", "from: [EU], operations")


@pytest.fixture
async def orders(cluster):
    await cluster.apply()
    await assign_all(cluster)
    return Orders(cluster.store)


async def facts(cluster, kind):
    listing = await cluster.client.list(cluster.keys.audit_entries)
    entries = [item.value.decode() for item in listing.items]
    return [entry for entry in entries if f'"kind":"{kind}"' in entry]


async def test_a_policy_that_moves_shards_is_stored_with_its_plan_and_ends_the_rollouts_before_it(cluster, orders):
    first = await orders.move_shard("DE", 0, "fra", ADA)
    applied = await cluster.apply(EU_TO_SG, author="bob", message="law", traceparent=ADA.traceparent)
    assert applied.rollout == "r00000002"
    record = await cluster.store.rollout(applied.rollout)
    assert (record.kind, record.state, record.shards_total, record.policy_revision) == ("policy", "running", 8, 2)
    assert (record.author, record.message, record.traceparent) == ("bob", "law", ADA.traceparent)
    moves = (await plan_of(cluster, applied.rollout)).moves
    assert {(move.source, move.target, move.required_by_law) for move in moves} == {
        ("ams", "sin", True), ("fra", "sin", True)
    }  # fmt: skip
    ended = await cluster.store.rollout(first.rollout)
    assert (ended.state, ended.note) == ("superseded", "rollout r00000002 has taken its place")
    assert ended.end_time


async def test_a_change_of_access_rules_leaves_a_running_rollout_alone(cluster, orders):
    moving = await orders.move_shard("DE", 0, "fra", ADA)
    applied = await cluster.apply(WITHOUT_SUPPORT)
    assert applied.rollout == ""
    assert (await cluster.store.rollout(moving.rollout)).state == "running"


async def test_a_policy_that_wants_the_shards_where_they_are_ends_the_moves_under_way(cluster, orders):
    moving = await cluster.apply(EU_TO_SG)
    back = await cluster.apply(POLICY)
    assert (await cluster.store.rollout(moving.rollout)).state == "superseded"
    record = await cluster.store.rollout(back.rollout)
    assert (record.state, record.shards_total, record.note) == ("running", 0, "nothing is to be moved any more")
    assert (await plan_of(cluster, back.rollout)).moves == ()


async def test_a_policy_that_follows_before_the_first_owners_are_there_assigns_by_the_new_weights(cluster):
    await cluster.apply()
    applied = await cluster.apply(OTHER_WEIGHTS)
    record = await cluster.store.rollout(applied.rollout)
    assert (record.shards_total, (await plan_of(cluster, applied.rollout)).moves) == (16, ())
    assert (await cluster.store.rollout("r00000001")).state == "superseded"
    owners = await assign_all(cluster)
    assert sum(owner == "fra" for (code, _), owner in owners.items() if code == "DE") == 3


async def test_a_shard_that_switches_between_planning_and_storing_is_planned_again(cluster, orders):
    moving = await orders.move_shard("DE", 0, "fra", ADA)
    cluster.store.audit = Interrupted(cluster, lambda: switch(cluster, "DE", 0, "fra", moving.rollout))
    applied = await cluster.apply(EU_TO_SG)
    moves = {(move.region_code, move.shard): move for move in (await plan_of(cluster, applied.rollout)).moves}
    assert moves["DE", 0].source == (await read_shard(cluster, "DE", 0)).owner == "fra"


async def test_an_order_between_planning_and_storing_is_seen(cluster, orders):
    other = Orders(cluster.store)
    cluster.store = type(cluster.store)(cluster.client, cluster.keys)
    cluster.store.audit = Interrupted(cluster, lambda: other.drain_idc("ams", ADA))
    assert (
        await cluster.apply(OTHER_WEIGHTS)
    ).rollout == ""  # all are on their way to fra, which the weights want, too
    assert (await cluster.store.rollout("d00000001")).state == "running"


async def test_what_was_planned_is_applied_or_nothing_is(cluster, orders):
    fingerprint = (await prepare(cluster.store, Draft(OTHER_WEIGHTS))).fingerprint
    cluster.store.audit = Interrupted(cluster, lambda: switch(cluster, "DE", 0, "fra"))
    with pytest.raises(PlanChanged):
        await cluster.apply(OTHER_WEIGHTS, plan_fingerprint=fingerprint)
    assert await cluster.store.newest_revision() == 1
    fingerprint = (await prepare(cluster.store, Draft(OTHER_WEIGHTS))).fingerprint
    assert (await cluster.apply(OTHER_WEIGHTS, plan_fingerprint=fingerprint)).revision == 2
    with pytest.raises(PlanChanged):
        await cluster.apply(POLICY, plan_fingerprint=fingerprint)


async def test_rebalancing_undoes_moves_by_hand_and_nothing_else_does(cluster, orders):
    await switch(cluster, "DE", 0, "fra")
    assert (await cluster.apply(WITHOUT_SUPPORT)).rollout == ""
    applied = await cluster.apply(WITHOUT_SUPPORT, rebalance=True)
    assert [(move.region_code, move.source) for move in (await plan_of(cluster, applied.rollout)).moves] == [
        ("DE", "fra")
    ]


async def test_an_order_to_move_a_shard_is_a_rollout_with_a_plan_and_an_entry_in_the_trail(cluster, orders):
    record = await orders.move_shard("DE", 0, "fra", ADA)
    assert record == await cluster.store.rollout(record.rollout)
    assert (record.rollout, record.kind, record.state, record.shards_total) == ("m00000001", "move", "running", 1)
    assert (record.author, record.message, record.traceparent) == ADA
    (move,) = (await plan_of(cluster, record.rollout)).moves
    assert (move.region_code, move.shard, move.source, move.target, move.required_by_law) == (
        "DE",
        0,
        "ams",
        "fra",
        False,
    )
    (fact,) = await facts(cluster, "rollout")
    assert '"author":"ada"' in fact
    assert '"from":"ams"' in fact


async def test_law_l1_what_the_law_forbids_is_denied_by_the_rule_s_name(cluster, orders):
    with pytest.raises(AccessDenied) as caught:
        await orders.move_shard("DE", 0, "sin", ADA)
    assert (caught.value.rule, caught.value.policy_revision) == ("europe", 1)
    assert "sin stands under SG" in str(caught.value)


WRONG = {
    "an unknown region code": (("XX", 0, "fra"), UnknownRegion),
    "an unknown shard": (("DE", 4, "fra"), UnknownShard),
    "a negative shard": (("DE", -1, "fra"), UnknownShard),
    "an unknown idc": (("DE", 0, "mad"), UnknownIdc),
    "where it is already": (("DE", 0, "ams"), IllegalMove),
}


@pytest.mark.parametrize(("words", "error"), WRONG.values(), ids=WRONG)
async def test_an_order_that_makes_no_sense_is_refused_and_stores_nothing(cluster, orders, words, error):
    with pytest.raises(error):
        await orders.move_shard(*words, ADA)
    assert len(await cluster.store.rollouts()) == 1


async def test_a_shard_in_an_open_plan_takes_no_other_order(cluster, orders):
    record = await orders.move_shard("DE", 0, "fra", ADA)
    with pytest.raises(IllegalMove, match="m00000001"):
        await orders.move_shard("DE", 0, "fra", ADA)
    await switch(cluster, "DE", 0, "fra", record.rollout)
    with pytest.raises(IllegalMove, match="m00000001"):
        await orders.move_shard("DE", 0, "ams", ADA)
    await end_rollout(cluster, record)
    assert (await orders.move_shard("DE", 0, "ams", ADA)).rollout == "m00000002"


async def test_of_many_admins_at_once_each_shard_is_ordered_once_and_every_order_has_a_number(cluster, orders):
    async def order(shard):
        return await Orders(cluster.store).move_shard("DE", shard, "fra", ADA)

    assert [(await read_shard(cluster, "DE", shard)).owner for shard in (0, 1)] == ["ams", "ams"]
    results = await asyncio.gather(*(order(shard) for shard in (0, 1) for _ in range(3)), return_exceptions=True)
    won = [it for it in results if not isinstance(it, BaseException)]
    assert sorted(record.rollout for record in won) == ["m00000001", "m00000002"]
    assert all(isinstance(it, IllegalMove) for it in results if isinstance(it, BaseException))
    assert len(await facts(cluster, "rollout")) == 2


async def test_an_admin_who_applies_and_one_who_moves_at_once_see_each_other(cluster, orders):
    applied, moved = await asyncio.gather(
        cluster.apply(EU_TO_SG), Orders(cluster.store).move_shard("DE", 0, "fra", ADA), return_exceptions=True
    )
    assert not isinstance(applied, BaseException)
    if isinstance(moved, BaseException):
        assert isinstance(moved, AccessDenied | IllegalMove)
    else:
        assert (await cluster.store.rollout(moved.rollout)).state == "superseded"
    snapshot = await read_snapshot(cluster.store)
    assert {wanted.rollout for wanted in snapshot.standing.wanted.values()} == {applied.rollout}


async def test_draining_moves_all_that_may_leave_and_tells_what_may_not(cluster, orders):
    drained = await orders.drain_idc("ams", ADA)
    assert (drained.rollout, len(drained.moved), drained.stuck) == ("d00000001", 4, ())
    assert {(move.from_idc, move.to_idc) for move in drained.moved} == {("ams", "fra")}
    assert len((await plan_of(cluster, drained.rollout)).moves) == 4
    with pytest.raises(IllegalMove, match="drained"):
        await orders.move_shard("FR", 2, "ams", ADA)
    stuck = await orders.drain_idc("sha", ADA)
    assert (stuck.rollout, stuck.moved) == ("", ())
    (left,) = stuck.stuck
    assert (left.region_code, left.shards) == ("CN", (0, 1, 2, 3))
    assert left.reason == "residency rule china keeps CN in CN, and no other IDC stands under CN"
    assert len(await facts(cluster, "drain")) == 2


async def test_draining_takes_over_what_moves_from_or_to_the_idc_and_leaves_the_rest(cluster, orders):
    towards = await orders.move_shard("DE", 2, "ams", ADA)
    leaving = await orders.move_shard("DE", 0, "fra", ADA)
    await switch(cluster, "FR", 0, "fra")
    drained = await orders.drain_idc("ams", ADA)
    states = {record.rollout: record.state for record in await cluster.store.rollouts()}
    assert states[towards.rollout] == states[leaving.rollout] == "superseded"
    assert {(move.region_code, move.shard) for move in drained.moved} == {("DE", 0), ("DE", 1), ("FR", 1)}


async def test_draining_touches_nothing_that_nobody_asked_for(cluster, orders):
    drained = await orders.drain_idc("ams", ADA)
    await orders.cancel(drained.rollout, "ada")
    await end_rollout(cluster, await cluster.store.rollout(drained.rollout), "cancelled")
    assert (await orders.drain_idc("sin", ADA)).moved == ()


async def test_the_last_idc_that_may_hold_a_region_code_is_told_so_when_all_are_drained(cluster, orders):
    await orders.drain_idc("ams", ADA)
    drained = await orders.drain_idc("fra", ADA)
    assert {stuck.reason for stuck in drained.stuck} == {
        f"residency rule europe keeps {code} in EU, and ams and fra are all drained" for code in ("DE", "FR")
    }


async def test_a_drained_idc_is_assigned_nothing_until_it_is_undrained(cluster, orders):
    await orders.drain_idc("ams", ADA)
    more = POLICY.replace("EU: [DE, FR]", "EU: [DE, FR, AT]")
    plan = (await prepare(cluster.store, Draft(more))).plan
    assert {move.to_idc for move in plan.assigned} == {"fra"}
    await orders.undrain_idc("ams", "ada")
    with pytest.raises(IllegalMove):
        await orders.undrain_idc("ams", "ada")
    with pytest.raises(UnknownIdc):
        await orders.undrain_idc("mad", "ada")
    plan = (await prepare(cluster.store, Draft(more))).plan
    assert {move.to_idc for move in plan.assigned} == {"ams", "fra"}


async def test_cancelling_tells_what_goes_on(cluster, orders):
    applied = await cluster.apply(EU_TO_SG)
    await switch(cluster, "DE", 0, "sin", applied.rollout)
    cancelled = await orders.cancel(applied.rollout, "ada")
    assert cancelled.record.state == (await cluster.store.rollout(applied.rollout)).state == "cancelling"
    assert len(cancelled.going_on) == 8  # the law demands seven, and one has passed its switch
    with pytest.raises(IllegalMove, match="cancelling"):
        await orders.cancel(applied.rollout, "ada")
    record = await cluster.store.rollout(applied.rollout)
    await end_rollout(cluster, record, "cancelled")
    with pytest.raises(IllegalMove, match="has ended"):
        await orders.cancel(applied.rollout, "ada")
    with pytest.raises(RevisionNotFound):
        await orders.cancel("r00000099", "ada")


async def test_cancelling_calls_off_what_nobody_demands(cluster, orders):
    applied = await cluster.apply(OTHER_WEIGHTS)
    assert (await orders.cancel(applied.rollout, "ada")).going_on == ()
    assert (await read_snapshot(cluster.store)).standing.wanted == {}


async def test_a_rollout_is_paused_and_resumed(cluster, orders):
    record = await orders.move_shard("DE", 0, "fra", ADA)
    assert (await orders.pause(record.rollout)).state == "paused"
    with pytest.raises(IllegalMove):
        await orders.pause(record.rollout)
    assert (await orders.resume(record.rollout)).state == "running"
    with pytest.raises(IllegalMove):
        await orders.resume(record.rollout)
    await orders.pause(record.rollout)
    assert (await orders.cancel(record.rollout, "ada")).record.state == "cancelling"


async def test_an_order_is_judged_again_when_the_controller_notes_something_meanwhile(cluster, orders):
    record = await orders.move_shard("DE", 0, "fra", ADA)
    noted = replace(record, note="copying")

    async def note():
        await cluster.client.put(cluster.keys.rollout(record.rollout), noted.encode())

    cluster.store.audit = Interrupted(cluster, note)
    assert (await orders.pause(record.rollout)).state == "paused"
    assert (await cluster.store.rollout(record.rollout)).state == "paused"


async def test_the_number_of_open_rollouts_is_bounded_so_that_a_policy_can_end_them_all(cluster, orders):
    for number in range(MAX_OPEN_ROLLOUTS):
        record = RolloutRecord(f"m1{number:07d}", 1, "running", "2026-01-01T00:00:00+00:00", kind="move")
        await cluster.client.put(cluster.keys.rollout(record.rollout), record.encode())
    with pytest.raises(LimitReached):
        await orders.move_shard("DE", 0, "fra", ADA)
    await cluster.apply(OTHER_WEIGHTS)
    assert [record.rollout for record in await cluster.store.rollouts() if not record.is_ended] == ["r00000002"]


async def test_of_two_admins_who_apply_the_same_plan_one_wins(cluster, orders):
    fingerprint = (await prepare(cluster.store, Draft(OTHER_WEIGHTS))).fingerprint
    draft = Draft(OTHER_WEIGHTS, plan_fingerprint=fingerprint)
    results = await asyncio.gather(
        *(apply_policy(cluster.store, draft, deadline=deadline()) for _ in range(2)), return_exceptions=True
    )
    lost = [it for it in results if isinstance(it, BaseException)]
    assert len(lost) == 1
    assert isinstance(lost[0], RevisionConflict | PlanChanged)
