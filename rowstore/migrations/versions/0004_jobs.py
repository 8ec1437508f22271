"""Jobs: definitions, offsets, runs, firings, and rows set aside.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BYTES = sa.Text(collation="C")
TIME = TIMESTAMP(timezone=True)
ZERO = sa.text("0")
EMPTY = sa.text("''")
FALSE = sa.text("false")
NOW = sa.text("clock_timestamp()")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "jobs",
        sa.Column("job", BYTES, nullable=False),
        sa.Column("dataset", BYTES, nullable=False),
        sa.Column("scan", BYTES, nullable=False),
        sa.Column("kind", BYTES, nullable=False),
        sa.Column("definition", sa.Text, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("is_paused", sa.Boolean, nullable=False, server_default=FALSE),
        sa.Column("paused_by", sa.Text, nullable=False, server_default=EMPTY),
        sa.Column("last_scheduled", TIME),
        sa.Column("next_scheduled", TIME),
        sa.Column("create_time", TIME, nullable=False, server_default=NOW),
        sa.PrimaryKeyConstraint("job", name="jobs_pkey"),
    )
    op.create_table(
        "job_offsets",
        sa.Column("job", BYTES, nullable=False),
        sa.Column("region_code", BYTES, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("token", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("runner", sa.Text, nullable=False, server_default=EMPTY),
        sa.Column("pass_time", TIME),
        sa.Column("pass_epoch", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("rows", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("batches", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("row_time", TIME),
        sa.Column("last_success", TIME),
        sa.Column("failures", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("last_error", sa.Text, nullable=False, server_default=EMPTY),
        sa.Column("is_stopped", sa.Boolean, nullable=False, server_default=FALSE),
        sa.PrimaryKeyConstraint("job", "region_code", "shard", name="job_offsets_pkey"),
        postgresql_with={"fillfactor": 50, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 1000},
    )
    op.create_index("job_offsets_shard", "job_offsets", ["region_code", "shard"])
    op.create_table(
        "job_set_aside",
        sa.Column("job", BYTES, nullable=False),
        sa.Column("region_code", BYTES, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("key", BYTES, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error_class", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("set_aside_time", TIME, nullable=False, server_default=NOW),
        sa.Column("is_replay_wanted", sa.Boolean, nullable=False, server_default=FALSE),
        sa.PrimaryKeyConstraint("job", "region_code", "shard", "seq", name="job_set_aside_pkey"),
    )
    op.create_table(
        "job_firings",
        sa.Column("job", BYTES, nullable=False),
        sa.Column("scheduled_time", TIME, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("create_time", TIME, nullable=False, server_default=NOW),
        sa.Column("end_time", TIME),
        sa.Column("misfires", sa.Integer, nullable=False, server_default=ZERO),
        sa.Column("traceparent", sa.Text, nullable=False, server_default=EMPTY),
        sa.PrimaryKeyConstraint("job", "scheduled_time", name="job_firings_pkey"),
    )
    op.create_table(
        "job_runs",
        sa.Column("run", BYTES, nullable=False),
        sa.Column("job", BYTES, nullable=False),
        sa.Column("runner", sa.Text, nullable=False),
        sa.Column("scheduled_time", TIME),
        sa.Column("policy_revision", sa.BigInteger, nullable=False),
        sa.Column("shards", sa.Integer, nullable=False),
        sa.Column("start_time", TIME, nullable=False, server_default=NOW),
        sa.Column("end_time", TIME),
        sa.Column("rows", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("batches", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("failures", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("set_aside", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False, server_default=EMPTY),
        sa.Column("traceparent", sa.Text, nullable=False, server_default=EMPTY),
        sa.PrimaryKeyConstraint("run", name="job_runs_pkey"),
    )
    op.create_index("job_runs_job_start_time", "job_runs", ["job", "start_time"])


def downgrade() -> None:
    """Drops them, and with them how far the jobs have come: only a test has a use for it."""
    for table in ("job_runs", "job_firings", "job_set_aside", "job_offsets", "jobs"):
        op.drop_table(table)
