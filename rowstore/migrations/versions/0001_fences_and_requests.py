"""Fences of shards, and requests that a retry must not repeat.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BYTES = sa.Text(collation="C")
TIME = TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "shard_fences",
        sa.Column("region_code", BYTES, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("last_time", TIME, nullable=False, server_default=sa.text("'-infinity'")),
        sa.PrimaryKeyConstraint("region_code", "shard", name="shard_fences_pkey"),
        sa.CheckConstraint("mode IN ('importing', 'serving', 'draining', 'closed')", name="shard_fences_mode_check"),
        postgresql_with={"fillfactor": 20, "autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 1000},
    )
    op.create_table(
        "write_requests",
        sa.Column("region_code", BYTES, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("request_id", BYTES, nullable=False),
        sa.Column("dataset", BYTES, nullable=False),
        sa.Column("part", sa.Integer, nullable=False),
        sa.Column("update_time", TIME, nullable=False),
        sa.Column("keys", ARRAY(sa.Text), nullable=False),
        sa.Column("seqs", ARRAY(sa.BigInteger), nullable=False),
        sa.PrimaryKeyConstraint("region_code", "shard", "request_id", "dataset", "part", name="write_requests_pkey"),
    )
    op.create_index("write_requests_update_time", "write_requests", ["update_time"], postgresql_using="brin")


def downgrade() -> None:
    """Drops them, and with them what this IDC knows of its shards: only a test has a use for it."""
    op.drop_table("write_requests")
    op.drop_table("shard_fences")
