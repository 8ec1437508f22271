"""Rows on their way from one RegionCode to another.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BYTES = sa.Text(collation="C")
TIME = TIMESTAMP(timezone=True)


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "row_departures",
        sa.Column("region_code", BYTES, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("dataset", BYTES, nullable=False),
        sa.Column("key", BYTES, nullable=False),
        sa.Column("move_id", BYTES, nullable=False),
        sa.Column("to_region_code", BYTES, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request_id", BYTES, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("asking_idcs", ARRAY(sa.Text), nullable=False),
        sa.Column("start_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("region_code", "shard", "dataset", "key", name="row_departures_pkey"),
        sa.CheckConstraint("state IN ('prepared', 'departed', 'void')", name="row_departures_state_check"),
    )
    op.create_table(
        "row_arrivals",
        sa.Column("region_code", BYTES, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("dataset", BYTES, nullable=False),
        sa.Column("key", BYTES, nullable=False),
        sa.Column("move_id", BYTES, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("from_region_code", BYTES, nullable=False),
        sa.Column("request_id", BYTES, nullable=False),
        sa.Column("columns", ARRAY(sa.Text), nullable=False),
        sa.Column("values", ARRAY(sa.Text), nullable=False),
        sa.Column("start_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("region_code", "shard", "dataset", "key", name="row_arrivals_pkey"),
    )


def downgrade() -> None:
    """Drops them, and with them the rows that are on their way: only a test has a use for it."""
    op.drop_table("row_arrivals")
    op.drop_table("row_departures")
