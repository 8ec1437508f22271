from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from policy.apply import Draft, apply_policy
from policy.errors import (
    InvalidInput,
    LimitReached,
    NoPolicy,
    PolicyRejected,
    RevisionConflict,
    RevisionNotFound,
)
from policy.records import CurrentPolicy, PolicyRevision, ShardRecord
from tests.support.cluster import POLICY, WITH_EMAIL, WITHOUT_SUPPORT, deadline, member


async def test_the_first_apply_stores_revision_one_and_sets_a_rollout_in_motion(cluster):
    applied = await cluster.apply(author="ada", message="first")
    assert (applied.revision, applied.rollout) == (1, "r00000001")
    record = await cluster.store.revision()
    assert (record.revision, record.parent, record.author, record.message) == (1, 0, "ada", "first")
    assert record.document == POLICY
    rollout = await cluster.store.rollout(applied.rollout)
    assert (rollout.state, rollout.shards_total, rollout.shards_done) == ("running", 16, 0)


async def test_a_change_of_access_rules_sets_nothing_in_motion(cluster):
    await cluster.apply()
    applied = await cluster.apply(WITHOUT_SUPPORT)
    assert (applied.revision, applied.rollout) == (2, "")
    assert [record.revision for record in await cluster.store.revisions(2, 10)] == [2, 1]


async def test_law_l7_every_revision_stays_readable(cluster):
    for document in (POLICY, WITHOUT_SUPPORT, POLICY, WITH_EMAIL):
        await cluster.apply(document)
    assert (await cluster.store.revision(2)).document == WITHOUT_SUPPORT
    with pytest.raises(RevisionNotFound):
        await cluster.store.revision(5)


async def test_without_a_policy_there_is_nothing_to_show(cluster):
    with pytest.raises(NoPolicy):
        await cluster.store.revision()


FROM_CHINA, FROM_NOWHERE = WITHOUT_SUPPORT, POLICY.replace("purposes: [support]", "purposes: [none]")


async def test_of_two_admins_at_once_one_wins_and_the_other_is_told_both_revisions(cluster):
    await cluster.apply()
    for parent in range(1, 9):
        results = await asyncio.gather(
            cluster.apply(FROM_CHINA, author="ada", parent=parent),
            cluster.apply(FROM_NOWHERE, author="bob", parent=parent),
            return_exceptions=True,
        )
        (won,) = [it for it in results if not isinstance(it, BaseException)]
        (lost,) = [it for it in results if isinstance(it, BaseException)]
        assert isinstance(lost, RevisionConflict)
        assert (lost.parent, lost.current) == (parent, parent + 1)
        record = await cluster.store.revision()
        assert record.revision == won.revision == parent + 1
        assert record.author == ("ada" if results[0] is won else "bob")


async def test_of_many_admins_who_state_no_parent_none_overwrites_what_it_has_not_seen(cluster):
    await cluster.apply()
    results = await asyncio.gather(
        *(cluster.apply(FROM_CHINA, author=f"admin-{number}") for number in range(6)), return_exceptions=True
    )
    won = [it.revision for it in results if not isinstance(it, BaseException)]
    assert all(isinstance(it, RevisionConflict) for it in results if isinstance(it, BaseException))
    assert sorted(won) == list(range(2, 2 + len(won)))
    assert await cluster.store.newest_revision() == 1 + len(won)


async def test_a_revision_is_stored_only_while_its_parent_is_current_whatever_numbers_are_free(cluster):
    await cluster.apply()
    base = await cluster.store.base()
    await cluster.client.put(cluster.keys.policy_current, CurrentPolicy(5).encode())
    with pytest.raises(RevisionConflict) as caught:
        await cluster.store.commit(base, PolicyRevision(2, 1, "", "", "", ""), None)
    assert (caught.value.parent, caught.value.current) == (1, 5)


async def test_an_admin_who_has_read_an_older_revision_is_refused(cluster):
    await cluster.apply()
    await cluster.apply(WITHOUT_SUPPORT)
    with pytest.raises(RevisionConflict) as caught:
        await cluster.apply(POLICY, parent=1)
    assert (caught.value.parent, caught.value.current) == (1, 2)
    with pytest.raises(RevisionConflict):
        await cluster.apply(POLICY, parent=0)
    assert await cluster.store.newest_revision() == 2


async def test_a_rejected_document_stores_nothing_and_tells_every_finding(cluster):
    with pytest.raises(PolicyRejected) as caught:
        await cluster.apply(
            POLICY.replace("jurisdictions: [CN]", "jurisdictions: [SG]").replace("shards: 4", "shards: 0")
        )
    assert len(caught.value.findings) > 1
    assert await cluster.store.newest_revision() == 0


async def test_a_failing_expectation_stores_nothing(cluster):
    await cluster.apply()
    expecting = POLICY + "expect:\n  - {region: DE, from: SG, operation: read, purpose: sales, decision: allow}\n"
    with pytest.raises(PolicyRejected):
        await cluster.apply(expecting)
    assert await cluster.store.newest_revision() == 1


async def test_a_policy_that_leaves_a_used_region_uncovered_is_rejected(cluster):
    await cluster.apply()
    await cluster.client.put(cluster.keys.shard("FR", 0), ShardRecord("fra", 1, "serving", 1).encode())
    with pytest.raises(PolicyRejected, match="FR"):
        await cluster.apply(POLICY.replace("EU: [DE, FR]", "EU: [DE]"))
    assert await cluster.store.newest_revision() == 1


async def test_validate_only_stores_nothing(cluster):
    applied = await apply_policy(cluster.store, Draft(POLICY), deadline=deadline(), validate_only=True)
    assert applied.revision == 0
    assert await cluster.store.newest_revision() == 0


async def test_a_new_column_is_waited_for_a_little_and_a_database_that_is_down_is_a_warning(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys):
        applied = await cluster.apply(WITH_EMAIL)
        assert [finding.code for finding in applied.findings if finding.severity == "warning"] == ["SCHEMA_PENDING"]
        assert applied.acknowledged == ("fra-1",)


async def test_a_new_column_that_the_database_has_at_once_is_no_warning(etcd, cluster):
    await cluster.apply()
    async with member(etcd.endpoint, cluster.keys) as it:

        async def keep_schema():
            async for table in it.follower.subscribe():
                it.presence.report_schema(table.policy.revision)

        keeper = asyncio.create_task(keep_schema())
        applied = await apply_policy(
            cluster.store, Draft(WITH_EMAIL), deadline=deadline(), schema_grace=timedelta(seconds=8)
        )
        keeper.cancel()
        assert not [finding for finding in applied.findings if finding.code == "SCHEMA_PENDING"]


async def test_what_is_too_long_is_refused(cluster):
    with pytest.raises(InvalidInput):
        await cluster.apply(author="x" * 300)
    with pytest.raises(InvalidInput):
        await cluster.apply(message="x" * 5000)
    with pytest.raises(LimitReached):
        await cluster.apply(POLICY + "#" + '"' * 1_000_000)
