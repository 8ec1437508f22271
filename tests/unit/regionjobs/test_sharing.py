"""Which shards are a runner's, and what is said when that changes."""

from __future__ import annotations

import pytest

from policy.errors import InvalidJob
from policy.model import Phase
from policy.records import RunnerRecord, ShardRecord
from regionjobs.definition import job
from regionjobs.sharing import WORKABLE, Sharing, difference, owned, regions_of
from rowstore.model import ShardEpoch
from tests.support.routing import OWNERS, POLICY, policy, table

GROUPED = POLICY.replace("residency:\n", "groups:\n  EU: [DE, FR]\n  Old: [US]\nresidency:\n", 1)


def settle(**words):
    """A job over customers; its name is not kept, so there may be many."""
    from regionjobs.definition import forget_registered

    async def handler(batch):
        """Does nothing."""

    made = job(**{"name": "settle", "dataset": "customers"} | words)(handler)
    forget_registered()
    return made


def runners(*names, jobs=("settle",)):
    return {name: RunnerRecord(name, "fra", jobs) for name in names}


def in_phase(phase, *, owner="fra", epoch=1):
    """A table in which the first shard of DE is in that phase."""
    law = policy(GROUPED)
    return table(law).patch(store_revision=11, shards=[("DE", 0, ShardRecord(owner, epoch, phase, 1))])


@pytest.mark.parametrize(
    ("regions", "codes"),
    [
        ((), {"CN", "DE", "FR", "SG"}),
        (("DE",), {"DE"}),
        (("EU",), {"DE", "FR"}),
        (("EU", "DE", "SG"), {"DE", "FR", "SG"}),
    ],
)
def test_regions_are_codes_groups_or_all_of_the_policy(regions, codes):
    found = regions_of(settle(regions=regions), policy(GROUPED))
    assert set(found) == codes
    assert len(found) == len(codes)


@pytest.mark.parametrize(
    ("words", "field", "said"),
    [
        ({"dataset": "invoices"}, "dataset", "it has counters, customers"),
        ({"regions": ["XX"]}, "regions", "XX"),
        ({"regions": ["Old"]}, "regions", "no residency rule covers US"),
    ],
)
def test_a_job_that_does_not_fit_the_policy_is_told_why(words, field, said):
    with pytest.raises(InvalidJob, match=said) as caught:
        regions_of(settle(**words), policy(GROUPED))
    assert caught.value.field_name == field


def test_a_source_of_ones_own_needs_no_dataset():
    from regionjobs.source import AdoptedTable

    made = settle(dataset="", source=AdoptedTable("t", position="p", region_code="r", key="k"), regions=["DE"])
    assert regions_of(made, policy()) == ("DE",)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_shard_is_worked_on_while_its_fence_may_let_it_be_taken(phase):
    found = owned(in_phase(phase), "fra", ("DE",))
    assert (ShardEpoch("DE", 0, 1) in found) == (phase in WORKABLE)
    assert {shard.shard for shard in found} >= {1, 2, 3}
    assert {Phase.SERVING, Phase.COPYING, Phase.ABORTING, Phase.PURGING} == WORKABLE


def test_what_another_idc_owns_or_nobody_is_not_worked_on():
    law = policy()
    assert owned(table(law), "ams", ("DE",)) == []
    nobody = table(law, {"FR": "ams"})
    assert owned(nobody, "fra", ("DE",)) == []


def test_the_shares_of_all_runners_of_a_job_are_everything_once():
    members = runners("a", "b", "c") | runners("d", jobs=("other",))
    sharing = [Sharing(settle(), "fra") for _ in members]
    shares = [each.share(table(), members, name) for each, name in zip(sharing, members, strict=True)]
    assert sorted(shard for share in shares for shard in share) == sorted(owned(table(), "fra", ("DE",)))
    # Who does not run the job has no share, and takes none away.
    assert shares[3] == frozenset()


def test_who_is_not_among_the_members_has_no_share():
    assert Sharing(settle(), "fra").share(table(), runners("a"), "b") == frozenset()
    assert Sharing(settle(), "fra").share(table(), {}, "") == frozenset()


def test_a_share_is_worked_out_anew_only_when_something_has_changed_that_it_rests_on():
    sharing, members, now = Sharing(settle(regions=["DE"]), "fra"), runners("a", "b"), table()
    first = sharing.share(now, members, "a")
    elsewhere = now.patch(store_revision=11, shards=[("SG", 0, ShardRecord("sin", 2, "serving", 1))])
    assert sharing.share(elsewhere, dict(members), "a") is first
    alone = sharing.share(elsewhere, runners("a"), "a")
    assert first < alone
    back = now.patch(store_revision=12, shards=[("DE", 2, ShardRecord("fra", 3, "serving", 1))])
    assert ShardEpoch("DE", 2, 3) in sharing.share(back, runners("a"), "a")


def test_another_policy_may_change_the_regions_of_a_group():
    sharing, members = Sharing(settle(regions=["EU"]), "fra"), runners("a")
    both = table(policy(GROUPED), OWNERS | {"FR": "fra"})
    assert {shard.region_code for shard in sharing.share(both, members, "a")} == {"DE", "FR"}
    smaller = policy(GROUPED.replace("EU: [DE, FR]", "EU: [FR]"), revision=2)
    fewer = both.patch(store_revision=11, policy=smaller)
    assert {shard.region_code for shard in sharing.share(fewer, members, "a")} == {"FR"}


# ---- why a run ends ----

HELD = frozenset(ShardEpoch("DE", shard, 1) for shard in range(4))
WITHOUT_FIRST = HELD - {ShardEpoch("DE", 0, 1)}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (in_phase(Phase.DRAINING), "DE/0 is draining"),
        (in_phase(Phase.SERVING, owner="ams", epoch=2), "DE/0 has moved to ams"),
        (in_phase(Phase.SERVING, epoch=3), "DE/0 has been away and is back"),
        (in_phase(Phase.SERVING), "DE/0 is another runner's now"),
        (in_phase("unreadable"), "DE/0 has no owner now"),
    ],
)
def test_the_reason_says_what_has_become_of_the_first_shard_that_is_gone(now, said):
    assert difference(HELD, WITHOUT_FIRST, now, "fra", ("DE",)) == said


def test_the_reason_counts_the_others_and_knows_of_regions():
    now = in_phase(Phase.SERVING)
    assert difference(HELD, frozenset(), now, "fra", ("DE",)) == "DE/0, and 3 more, is another runner's now"
    assert difference(HELD, frozenset(), now, "fra", ("FR",)).endswith("is not of the job's regions any more")
    assert difference(WITHOUT_FIRST, HELD, now, "fra", ("DE",)) == "DE/0 has come"
    assert difference(frozenset(), HELD, now, "fra", ("DE",)) == "DE/0, and 3 more, has come"
    # What is gone matters more than what has come.
    other = WITHOUT_FIRST | {ShardEpoch("FR", 0, 1)}
    assert difference(HELD, other, now, "fra", ("DE", "FR")) == "DE/0 is another runner's now"
