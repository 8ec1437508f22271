"""What moving a shard needs: attempts at the fences, the progress of imports, and purges that may go on.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BYTES = sa.Text(collation="C")
TIME = TIMESTAMP(timezone=True)
ZERO = sa.text("0")


def upgrade() -> None:
    """Adds a column with a constant default, which rewrites no row, an index and two tables."""
    op.add_column("shard_fences", sa.Column("attempt", sa.BigInteger, nullable=False, server_default=ZERO))
    op.create_index(
        "write_requests_shard_time",
        "write_requests",
        ["region_code", "shard", "update_time"],
        postgresql_where=sa.text("update_time > '-infinity'"),
    )
    op.create_table(
        "shard_imports",
        sa.Column("region_code", BYTES, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("first_pass_seq", sa.BigInteger),
        sa.Column("source_seq", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("copied_seq", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("copied_time", TIME),
        sa.Column("rows_copied", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("bytes_copied", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("rows", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("is_final", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("last_seq", sa.BigInteger, nullable=False, server_default=ZERO),
        sa.Column("last_time", TIME),
        sa.PrimaryKeyConstraint("region_code", "shard", name="shard_imports_pkey"),
    )
    op.create_table(
        "shard_purges",
        sa.Column("region_code", BYTES, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("region_code", "shard", name="shard_purges_pkey"),
    )


def downgrade() -> None:
    """Takes them away again: only a test has a use for it."""
    op.drop_table("shard_purges")
    op.drop_table("shard_imports")
    op.drop_index("write_requests_shard_time", "write_requests")
    op.drop_column("shard_fences", "attempt")
