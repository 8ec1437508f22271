import io

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from regiongate.cli.rollout_progress import Progress, draw
from regiongate.v1 import policy_service_pb2 as pb


def _move(shard, phase, **words):
    return pb.ShardMove(region_code="DE", shard=shard, from_idc="fra", to_idc="ams", phase=phase, **words)


def _rollout(*moves, state="running", done=0, total=3):
    return pb.Rollout(rollout="r00000002", state=state, shards_done=done, shards_total=total, moves=moves, note="why")


def test_each_end_and_each_stage_is_told_once_also_when_everything_is_told_anew():
    progress = Progress()
    assert progress.take(_rollout(_move(0, "waiting"), _move(1, "waiting"))) == [
        "rollout r00000002 has 3 shards to bring to where they are to be"
    ]
    assert progress.take(_rollout(_move(0, "copying"))) == ["rollout r00000002 moves shards"]
    done = _move(0, "done", attempt=1, rows_copied=1234, stall_ms=41.6, switch_time=Timestamp(seconds=1))
    assert progress.take(_rollout(done)) == ["DE/0 fra -> ams: done, 1,234 rows, writes held for 42 ms"]
    news = progress.news
    assert progress.take(_rollout(done, _move(1, "waiting"))) == []
    assert progress.news == news
    assert progress.take(_rollout(state="done", done=3)) == []
    assert progress.is_ended


def test_what_never_began_is_counted_and_what_did_is_told_with_its_reason():
    progress = Progress()
    moves = [*(_move(n, "called off") for n in range(5)), _move(5, "called off", attempt=2, note="the columns differ")]
    lines = progress.take(_rollout(*moves, state="cancelled"))
    assert lines == ["DE/5 fra -> ams: called off, the columns differ", "5 moves called off before they began"]


def test_first_owners_are_a_stage_of_their_own():
    assert Progress().take(_rollout(done=1)) == ["rollout r00000002 gives shards their first owners"]
    paused = Progress().take(_rollout(_move(0, "waiting"), state="paused"))
    assert paused == ["rollout r00000002 is paused"]


def test_the_picture_shows_what_is_under_way():
    progress = Progress()
    moves = [_move(n, "copying", rows_copied=1000 * n, rows_per_second=2500.4, remaining=7) for n in range(14)]
    progress.take(_rollout(*moves))
    out = io.StringIO()
    Console(file=out, width=100).print(draw(progress))
    text = out.getvalue()
    assert "r00000002 is running: 0 of 3 shards" in text
    assert "DE/3" in text
    assert "3,000" in text
    assert "2,500" in text
    assert "and 2 more; why" in text
