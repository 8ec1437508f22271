"""Jobs as a person reads them."""

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from regiongate.cli.jobs_text import job_row, lag_text, offset_row, problems, run_row, state_of, when
from regiongate.v1 import job_service_pb2 as pb


def _at(second: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime(2026, 3, 1, 12, 0, second, 250_000, UTC))
    return stamp


def _job(**words) -> pb.Job:
    return pb.Job(**{"job": "settle", "idc": "fra", "shards": 4, "runners": ["r1"]} | words)


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ({}, "up to date"),
        ({"shards_behind": 1}, "behind"),
        ({"shards_behind": 2, "shards_stopped": 1}, "stopped in part"),
        ({"shards_stopped": 1, "runners": []}, "no runner"),
        ({"runners": [], "shards": 0}, "up to date"),
        ({"is_paused": True, "runners": []}, "paused"),
    ],
)
def test_the_gravest_state_is_told(words, state):
    assert state_of(_job(**words)) == state


def test_a_job_that_is_well_has_no_problem():
    assert list(problems([_job()], [pb.JobOffset(idc="fra")], [pb.JobRun(idc="fra", result="done")], [])) == []


def test_each_problem_is_a_sentence_that_says_where_and_what_to_do():
    jobs = [
        _job(is_paused=True, paused_by="ada", rows_set_aside=2),
        _job(idc="ams", runners=[], shards=1, is_paused=True),
    ]
    words = {"idc": "fra", "region_code": "DE", "last_error": "ValueError"}
    offsets = [
        pb.JobOffset(shard=0, is_stopped=True, failures=5, **words),
        pb.JobOffset(shard=1, is_stopped=True, failures=5, **words),
        pb.JobOffset(shard=2, failures=1, **words),
        pb.JobOffset(shard=3, **{**words, "last_error": "Unavailable"}),
    ]
    runs = [
        pb.JobRun(idc="fra", result="lost", reason="the runner is gone"),
        pb.JobRun(idc="fra", result="failed"),
        pb.JobRun(idc="ams", result="done"),
        pb.JobRun(idc="ams", result="failed"),
    ]
    assert list(problems(jobs, offsets, runs, ["sin"])) == [
        "sin: cannot be reached, nothing is known of it",
        "fra: paused by ada: regiongate jobs resume settle --in fra",
        "fra: 2 rows set aside: regiongate jobs set-aside settle --idc fra",
        "ams: paused: regiongate jobs resume settle --in ams",
        "ams: no runner is there, and 1 shard is its own",
        "fra: has stopped in 2 shards with ValueError: DE/0 and DE/1",
        "fra: keeps failing in 1 shard with ValueError: DE/2",
        "fra: waits in 1 shard with Unavailable: DE/3",
        "fra: the newest run is lost: the runner is gone",
    ]


def test_numbers_and_times_are_told_short_and_what_is_not_there_is_empty():
    row = job_row(_job(rows_per_second=12_345.6, lag_seconds=3.14159, last_success=_at(1)))
    assert (row["rows_per_second"], row["lag"], row["runners"]) == ("12,346", "3.1 s", 1)
    assert (row["last_success"], row["next_scheduled"]) == ("2026-03-01T12:00:01Z", "")
    assert [lag_text(seconds) for seconds in (0, 0.04, 119.96, 600, 7200)] == [
        "",
        "0.0 s",
        "120.0 s",
        "10 min",
        "2.0 h",
    ]
    assert when(Timestamp()) == ""


def test_a_run_tells_how_long_it_took_once_it_has_ended():
    run = pb.JobRun(run="a", start_time=_at(1))
    assert run_row(run)["seconds"] == ""
    run.end_time.CopyFrom(_at(3))
    assert run_row(run)["seconds"] == "2.0"


def test_an_offset_tells_failures_only_where_there_are_some():
    assert offset_row(pb.JobOffset(seq=3, last_seq=9))["failures"] == ""
    row = offset_row(pb.JobOffset(failures=2, last_error="KeyError", is_stopped=True))
    assert (row["failures"], row["last_error"], row["state"]) == (2, "KeyError", "stopped")
