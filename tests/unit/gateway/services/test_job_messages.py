"""What is asked of JobService, and what a job's definition means under a policy."""

from datetime import UTC, datetime

import pytest

from gateway.job_local import check_batch, regions_of
from gateway.job_messages import check_job, job_message, offset_message, page_size, run_message, stamp
from policy.errors import InvalidInput
from rowstore.jobs.model import JobRecord, JobStatus, OffsetState, RunRecord, RunResult
from tests.support import routing

TIME = datetime(2026, 3, 1, 12, 0, 1, 250_000, UTC)


@pytest.mark.parametrize(
    ("definition", "codes"),
    [
        ('{"regions": ["DE"]}', {"DE"}),
        ('{"regions": ["DE", "DE"]}', {"DE"}),
        ('{"regions": ["no group", "DE"]}', {"DE"}),
        ('{"regions": ["no group"]}', set()),
        ('{"regions": []}', None),
        ("{}", None),
        ("[1]", None),
        ("not JSON", None),
    ],
)
def test_a_job_covers_the_region_codes_that_it_names_and_all_without_any(definition, codes):
    policy = routing.policy()
    found = regions_of(JobRecord("a", "customers", "per shard", "batch", definition), policy)
    assert set(found) == (set(policy.regions) if codes is None else codes)
    assert len(found) == len(set(found))


def test_names_of_groups_are_expanded():
    policy = routing.policy()
    for name, members in policy.document.groups.items():
        record = JobRecord("a", "customers", "per shard", "batch", f'{{"regions": ["{name}"]}}')
        assert set(regions_of(record, policy)) == set(members)


@pytest.mark.parametrize(("asked", "size"), [(0, 20), (1, 1), (1000, 1000)])
def test_a_page_is_of_the_size_that_is_asked_for_or_the_usual_one(asked, size):
    assert page_size(asked, 20) == size


@pytest.mark.parametrize("asked", [-1, 1001])
def test_a_page_out_of_bounds_is_refused_by_name(asked):
    with pytest.raises(InvalidInput) as caught:
        page_size(asked, 20)
    assert caught.value.field_name == "page_size"


def test_a_request_names_its_job_and_only_batch_jobs_are_triggered():
    assert check_job("settle") == "settle"
    for refused in (lambda: check_job(""), lambda: check_batch(["batch", "long-running"])):
        with pytest.raises(InvalidInput) as caught:
            refused()
        assert caught.value.field_name == "job"
    check_batch(["batch", "batch"])


def test_times_keep_their_microseconds_and_absent_ones_stay_absent():
    told = stamp(TIME)
    assert told is not None
    assert told.ToDatetime(UTC) == TIME
    assert stamp(None) is None
    status = JobStatus(JobRecord("a", "customers", "per shard", "batch"), 4, 0, 0, 0, 0.0, 0, 0.0, 0, None)
    message = job_message(status, "fra", ["r1"])
    assert not message.HasField("last_success")
    assert not message.HasField("next_scheduled")


def test_every_number_has_its_place():
    record = JobRecord("a", "customers", "per shard", "batch", is_paused=True, paused_by="ada", next_scheduled=TIME)
    job = job_message(JobStatus(record, 9, 8, 7, 6, 5.5, 4, 3.5, 2, TIME), "fra", ["r1", "r2"])
    assert (job.shards, job.shards_behind, job.shards_stopped, job.lag_rows, job.lag_seconds) == (9, 8, 7, 6, 5.5)
    assert (job.rows_handled, job.rows_per_second, job.rows_set_aside) == (4, 3.5, 2)
    assert (job.is_paused, job.paused_by, list(job.runners)) == (True, "ada", ["r1", "r2"])
    assert job.next_scheduled == job.last_success == stamp(TIME)
    state = OffsetState("DE", 1, 2, 3, 4, 5, "r1", 6, 7, "KeyError", True, TIME, 8.5)
    offset = offset_message(state, "a", "fra")
    assert (offset.region_code, offset.shard, offset.epoch, offset.seq, offset.last_seq) == ("DE", 1, 2, 3, 4)
    assert (offset.token, offset.rows_handled, offset.failures, offset.lag_seconds) == (5, 6, 7, 8.5)
    assert (offset.last_error, offset.is_stopped, offset.runner) == ("KeyError", True, "r1")
    record = RunRecord("run", "a", "r1", 3, 4, RunResult.LOST, TIME, TIME, TIME, 5, 6, 7, 8, "why", "tp")
    run = run_message(record, "ams")
    assert (run.run, run.job, run.idc, run.runner, run.result, run.reason) == ("run", "a", "ams", "r1", "lost", "why")
    assert (run.policy_revision, run.shards, run.rows_handled, run.batches) == (3, 4, 5, 6)
    assert (run.failures, run.rows_set_aside, run.traceparent) == (7, 8, "tp")
