import json

from hypothesis import given
from hypothesis import strategies as st

from policy.compile import compile_policy
from policy.document import PolicyDocument
from policy.draining import Stuck, plan_drain
from policy.intent import Standing, WantedMove, is_lawful
from policy.records import PlannedMove
from tests.unit.policy.documents import bend, compiled

POLICY_AT_REST = compiled()
EU_SHARDS = [("DE", number) for number in range(8)]


def _document():
    idcs = {idc: {"jurisdiction": "EU"} for idc in ("ams", "fra", "mad")}
    rule = {"name": "eu", "regions": ["DE"], "jurisdictions": ["EU"], "idcs": {"ams": 1, "fra": 1}, "shards": 8}
    datasets = {"customers": {"key": "string", "columns": {"spend": {"type": "int64"}}}}
    document = {"version": 1, "idcs": idcs, "residency": [rule], "datasets": datasets}
    return compile_policy(PolicyDocument.from_json(json.dumps(document)), 1)


THREE = _document()


@st.composite
def _standings(draw):
    """Owners chosen by anybody, and some moves that two rollouts have begun."""
    idc = st.sampled_from(["ams", "fra", "mad"])
    owners = {shard: draw(idc) for shard in EU_SHARDS}
    wanted = {}
    for shard in draw(st.sets(st.sampled_from(EU_SHARDS))):
        target = draw(idc)
        if target != owners[shard]:
            move = PlannedMove(*shard, owners[shard], target)
            wanted[shard] = WantedMove(draw(st.sampled_from(["m1", "r2"])), move)
    return Standing(owners, wanted)


@given(_standings())
def test_everything_leaves_nothing_arrives_and_nobody_else_is_touched(standing):
    plan = plan_drain(THREE, standing, "ams")
    moved = {move.key: move.to_idc for move in plan.moved}
    assert plan.stuck == ()
    for shard, owner in standing.owners.items():
        wanted = standing.wanted.get(shard)
        is_left_alone = wanted is None or wanted.rollout in plan.superseded
        end = moved.get(shard, owner if is_left_alone else wanted.move.target)
        assert end != "ams"
        assert is_lawful(THREE, THREE.regions["DE"], end)
        if owner != "ams" and (wanted is None or wanted.move.target != "ams"):
            # As it is meant to be already: in another rollout, or in this one, which has taken that over.
            assert end == (wanted.move.target if wanted else owner)
    for shard, wanted in standing.wanted.items():
        assert (wanted.rollout in plan.superseded) or shard not in moved


@given(_standings())
def test_a_rollout_is_taken_over_only_if_it_has_to_do_with_the_idc(standing):
    plan = plan_drain(THREE, standing, "ams")
    concerned = {
        wanted.rollout
        for shard, wanted in standing.wanted.items()
        if "ams" in (standing.owners[shard], wanted.move.target)
    }
    assert plan.superseded == concerned


def test_what_must_stay_is_told_with_the_rule():
    owners = {("CN", number): "sha" for number in range(16)}
    plan = plan_drain(POLICY_AT_REST, Standing(owners), "sha")
    why = "residency rule china keeps CN in CN, and no other IDC stands under CN"
    assert plan.moved == ()
    assert plan.stuck == (Stuck("CN", tuple(range(16)), why),)


def test_without_another_weight_the_shards_go_to_the_other_lawful_idcs_in_equal_shares():
    text = bend(
        ("fra: 60, ams: 40", "fra: 1"),
        ("ams: {jurisdiction: EU}", "ams: {jurisdiction: EU}\n  mad: {jurisdiction: EU}"),
    )
    policy = compiled(text)
    owners = {("DE", number): "fra" for number in range(8)}
    plan = plan_drain(policy, Standing(owners), "fra")
    targets = [move.to_idc for move in plan.moved]
    assert (targets.count("ams"), targets.count("mad")) == (4, 4)
