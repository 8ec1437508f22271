"""What the demo says of a change of law: the edit, the moves, and the way of one shard."""

from __future__ import annotations

from policy.compile import compile_policy
from policy.loading import load_policy
from regiongate.demo.change import NEW_IDC, edit_of
from regiongate.demo.rollout import MovedRegion, by_region
from regiongate.demo.stack import new_policy_file, policy_file
from regiongate.demo.traces import of_shard, processes
from regiongate.v1 import policy_service_pb2 as pb
from runtime.telemetry.spans import SpanRecord

OLD, NEW = policy_file().read_text(encoding="utf-8"), new_policy_file().read_text(encoding="utf-8")


def span(name: str, parent: str = "", service: str = "gateway", idc: str = "", **shard: object) -> SpanRecord:
    attributes = {f"regiongate.{key}": value for key, value in shard.items()}
    return SpanRecord("t", name, parent, name, "internal", service, idc, len(name), 99, attributes=attributes)


def test_the_new_policy_stands_and_moves_only_the_united_kingdom():
    before, after = compile_policy(load_policy(OLD).document, 1), compile_policy(load_policy(NEW).document, 2)
    changed = [code for code, it in after.regions.items() if it != before.regions[code]]
    assert sorted(changed) == ["GB", "GG", "IM", "JE"]
    assert all(set(after.regions[code].weights) == {NEW_IDC} for code in changed)
    assert after.regions["GB"].shards == before.regions["GB"].shards


def test_the_edit_is_short_enough_to_be_read():
    edit = edit_of(OLD, NEW)
    assert "+  lon: {jurisdiction: UK}" in edit
    assert len(edit) < 20
    assert sum(line.startswith("-") for line in edit) == 1


def test_moves_are_told_by_region_and_way():
    moves = [
        pb.ShardMove(region_code="GB", shard=n, from_idc=source, to_idc="lon", rows_copied=10, stall_ms=stall)
        for n, (source, stall) in enumerate((("fra", 10), ("fra", 30), ("fra", 50), ("ams", 7)))
    ]
    assert by_region(moves) == [
        MovedRegion("GB", "ams", "lon", 1, 10, 7, 7),
        MovedRegion("GB", "fra", "lon", 3, 30, 30, 50),
    ]


def test_the_trace_of_one_shard_has_its_own_spans_and_the_way_up_to_the_root():
    spans = [
        span("apply", idc="fra"),
        span("copy 0", "apply", "controller", region_code="GB", shard=0),
        span("import 0", "copy 0", idc="lon", region_code="GB"),
        span("export 0", "import 0", idc="ams"),
        span("copy 1", "apply", "controller", region_code="GB", shard=1),
        span("import 1", "copy 1", idc="lon"),
    ]
    found = of_shard(spans, "GB", 0)
    assert {it.name for it in found} == {"apply", "copy 0", "import 0", "export 0"}
    assert processes(found) == ["gateway fra", "controller", "gateway lon", "gateway ams"]
    assert of_shard(spans, "JE", 0) == []
