"""Metrics of a runner. Labels are names of jobs and RegionCodes, never anything of a row (law L1)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30)

ROWS = Counter("regiongate_job_rows", "Rows handled.", ["job", "region_code"])
BATCHES = Counter("regiongate_job_batches", "Tries at batches, by how they ended.", ["job", "outcome"])
BATCH_SECONDS = Histogram(
    "regiongate_job_batch_seconds", "Duration of a batch with its commit.", ["job"], buckets=_SECONDS
)
SET_ASIDE = Counter("regiongate_job_rows_set_aside", "Rows set aside.", ["job", "region_code"])
UNOWNED = Counter("regiongate_job_rows_unowned", "Rows of a source whose RegionCode no rule covers.", ["job"])
RUNS = Counter("regiongate_job_runs", "Runs, by their result.", ["job", "result"])
RUNNING = Gauge("regiongate_job_running", "Whether a run of the job is under way in this runner.", ["job"])
SHARDS = Gauge("regiongate_job_shards", "Shards that are this runner's share of the job.", ["job"])
LAG_SECONDS = Gauge(
    "regiongate_job_lag_seconds", "Age of the oldest change in this IDC that the job has not handled.", ["job"]
)
LAG_ROWS = Gauge("regiongate_job_lag_rows", "Changes in this IDC that the job has still to look at.", ["job"])
SHARDS_STOPPED = Gauge("regiongate_job_shards_stopped", "Shards at which the job has stopped.", ["job"])
LAST_SUCCESS = Gauge(
    "regiongate_job_last_success_timestamp_seconds", "When the job last committed in this IDC.", ["job"]
)
FIRINGS = Counter("regiongate_job_firings", "Firings that this runner has made, by their origin.", ["job", "origin"])
MISFIRES = Counter("regiongate_job_misfires", "Scheduled times that were passed over.", ["job"])
PAUSED_SECONDS = Counter(
    "regiongate_job_paused_seconds", "Time that batches have waited to yield, or for their rate.", ["job"]
)
SESSIONS = Counter("regiongate_runner_sessions", "Times this runner was registered under a new lease.")
IS_ALIVE = Gauge("regiongate_runner_alive", "Whether this runner's session holds (1) or not (0).")
LOOP_BLOCKED = Counter("regiongate_runner_blocked", "Times a handler has blocked the runner's event loop.")
