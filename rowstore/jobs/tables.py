"""The tables of jobs.

`job_offsets` and `job_set_aside` belong to shards and travel with them. The others tell of this IDC alone: who works
here, when, and with what result; they hold no row, no part of one and no key of one.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, Table, Text, text

from rowstore.tables import REGION_CODE_TYPE, TIME_TYPE, system_metadata

_NAME: Final = Text(collation="C")
_ZERO: Final = text("0")
_EMPTY: Final = text("''")
_FALSE: Final = text("false")
_NOW: Final = text("clock_timestamp()")

jobs: Final = Table(
    "jobs",
    system_metadata,
    Column("job", _NAME, primary_key=True),
    # These three say what the offsets mean: a job that has offsets keeps them.
    Column("dataset", _NAME, nullable=False),
    Column("scan", _NAME, nullable=False),
    Column("kind", _NAME, nullable=False),
    # The rest of the definition, for people: JSON.
    Column("definition", Text, nullable=False, server_default=text("'{}'")),
    Column("is_paused", Boolean, nullable=False, server_default=_FALSE),
    Column("paused_by", Text, nullable=False, server_default=_EMPTY),
    # The newest scheduled time that was turned into a firing, or passed over. By this database's clock.
    Column("last_scheduled", TIME_TYPE),
    Column("next_scheduled", TIME_TYPE),
    Column("create_time", TIME_TYPE, nullable=False, server_default=_NOW),
)
"""Every job that was ever run in this IDC."""

job_offsets: Final = Table(
    "job_offsets",
    system_metadata,
    Column("job", _NAME, primary_key=True),
    Column("region_code", REGION_CODE_TYPE, primary_key=True),
    Column("shard", Integer, primary_key=True),
    # Everything up to this sequence (in a global scan: position) has been handled.
    Column("seq", BigInteger, nullable=False, server_default=_ZERO),
    # Goes up whenever a runner takes the shard, and when it is closed: a commit with an older one changes nothing.
    Column("token", BigInteger, nullable=False, server_default=_ZERO),
    # Who took it last; empty once it is closed, when nobody has the token.
    Column("runner", Text, nullable=False, server_default=_EMPTY),
    # The newest firing that it has had its pass for, and the epoch in which: another owner's clock says nothing.
    Column("pass_time", TIME_TYPE),
    Column("pass_epoch", BigInteger, nullable=False, server_default=_ZERO),
    Column("rows", BigInteger, nullable=False, server_default=_ZERO),
    Column("batches", BigInteger, nullable=False, server_default=_ZERO),
    # Time of the newest row handled, and when something was last committed.
    Column("row_time", TIME_TYPE),
    Column("last_success", TIME_TYPE),
    # Failures of the batch at hand, one after the other; and what the newest was, by the class of the error.
    Column("failures", Integer, nullable=False, server_default=_ZERO),
    Column("last_error", Text, nullable=False, server_default=_EMPTY),
    # Set when the job is defined to stop at a row that keeps failing; `jobs resume` takes it away.
    Column("is_stopped", Boolean, nullable=False, server_default=_FALSE),
    # A move looks for the shard's offsets, whatever the job.
    Index("job_offsets_shard", "region_code", "shard"),
    postgresql_with={"fillfactor": 50, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 1000},
)
"""How far each job has come in each shard, and who may go on (law L5)."""

job_set_aside: Final = Table(
    "job_set_aside",
    system_metadata,
    Column("job", _NAME, primary_key=True),
    Column("region_code", REGION_CODE_TYPE, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    # The row's key as text. The row itself stays where it is.
    Column("key", _NAME, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error_class", Text, nullable=False),
    # May quote the row, and so never leaves this table but to a client of this IDC.
    Column("error", Text, nullable=False),
    Column("set_aside_time", TIME_TYPE, nullable=False, server_default=_NOW),
    Column("is_replay_wanted", Boolean, nullable=False, server_default=_FALSE),
)
"""Rows that a job could not handle, in the region that they belong to."""

job_firings: Final = Table(
    "job_firings",
    system_metadata,
    Column("job", _NAME, primary_key=True),
    Column("scheduled_time", TIME_TYPE, primary_key=True),
    # schedule | manual | after <job>
    Column("origin", Text, nullable=False),
    Column("create_time", TIME_TYPE, nullable=False, server_default=_NOW),
    Column("end_time", TIME_TYPE),
    # How many scheduled times were passed over for this one.
    Column("misfires", Integer, nullable=False, server_default=_ZERO),
    Column("traceparent", Text, nullable=False, server_default=_EMPTY),
)
"""Times at which a batch job is to make a pass over this IDC's rows, each once, whoever makes it."""

job_runs: Final = Table(
    "job_runs",
    system_metadata,
    Column("run", _NAME, primary_key=True),
    Column("job", _NAME, nullable=False),
    Column("runner", Text, nullable=False),
    Column("scheduled_time", TIME_TYPE),
    Column("policy_revision", BigInteger, nullable=False),
    Column("shards", Integer, nullable=False),
    Column("start_time", TIME_TYPE, nullable=False, server_default=_NOW),
    Column("end_time", TIME_TYPE),
    Column("rows", BigInteger, nullable=False, server_default=_ZERO),
    Column("batches", BigInteger, nullable=False, server_default=_ZERO),
    Column("failures", BigInteger, nullable=False, server_default=_ZERO),
    Column("set_aside", BigInteger, nullable=False, server_default=_ZERO),
    # running | done | ended | failed | lost
    Column("result", Text, nullable=False),
    Column("reason", Text, nullable=False, server_default=_EMPTY),
    Column("traceparent", Text, nullable=False, server_default=_EMPTY),
    Index("job_runs_job_start_time", "job", "start_time"),
)
"""The history of runs in this IDC."""
