from regiongate.cli.plan_text import bytes_text, duration_text, plan_lines
from regiongate.v1 import policy_service_pb2 as pb


def _moves(codes, **words):
    return [pb.ShardChange(region_code=code, shard=0, from_idc="fra", to_idc="ams", **words) for code in codes]


def test_a_plan_that_does_nothing_is_one_line():
    assert list(plan_lines(pb.PlanPolicyResponse(parent=3), 0)) == ["from revision 3"]
    assert list(plan_lines(pb.PlanPolicyResponse(), 1)) == [
        "the first policy", "expect: all 1 entry of the document hold"
    ]  # fmt: skip


def test_many_region_codes_are_one_line_for_each_pair_of_idcs():
    codes = [f"C{number}" for number in range(30)]
    lines = list(plan_lines(pb.PlanPolicyResponse(parent=1, moved=_moves(codes, rows=10, bytes=100)), 0))
    assert lines[1] == "moved: 30 shards of C0, C1, C10, C11, C12 and 25 more from fra to ams, 300 rows, 3.0 kB"


def test_what_is_not_known_is_not_made_up():
    answer = pb.PlanPolicyResponse(
        parent=1, moved=[*_moves(["DE"], rows=1, bytes=1), *_moves(["FR"], required_by_law=True)], unreachable=["fra"]
    )
    assert list(plan_lines(answer, 0))[1:] == [
        "moved: 1 shard of FR from fra to ams (the law demands it)",
        "moved: 1 shard of DE from fra to ams, 1 row, 1 B",
        "not known: how much there is to copy from fra, which cannot be reached",
        "in all: 2 shards to move",
    ]


def test_access_is_gained_lost_or_changed():
    sentences = {
        "from SG, read of a in DE for any purpose: denied, was allowed by x": "lost",
        "from SG, read of a in DE for any purpose: allowed by x, was denied": "gained",
        "from SG, read of a in DE for any purpose: allowed by x": "gained",
        "from SG, read of a in DE for any purpose: allowed by x, was allowed by x without name": "changed",
        "DE may be stored in SG, was EU": "law",
    }
    answer = pb.PlanPolicyResponse(
        parent=1, access_changes=[pb.AccessChange(sentence=it, example="e") for it in sentences]
    )
    lines = [line for line in plan_lines(answer, 0) if line.startswith("access")]
    assert lines == [f"access {word}: {sentence}" for sentence, word in sentences.items()]


def test_sizes_and_durations_are_said_as_a_person_says_them():
    assert [bytes_text(size) for size in (0, 999, 64_000, 2.5e9, 7e15)] == [
        "0 B",
        "999 B",
        "64.0 kB",
        "2.5 GB",
        "7000.0 TB",
    ]
    assert [duration_text(it) for it in (0.2, 40, 600, 7200)] == ["1 s", "40 s", "10 min", "2.0 h"]
