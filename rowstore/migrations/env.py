"""Run by Alembic, on the connection that `rowstore.schema.migrate` or a test hands over."""

from __future__ import annotations

from alembic import context

from rowstore.jobs import tables as _job_tables  # noqa: F401 (they belong to the metadata)
from rowstore.tables import system_metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=system_metadata,
    transactional_ddl=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
