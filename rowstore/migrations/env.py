"""Run by Alembic, on the connection that `rowstore.schema.migrate` or a test hands over."""

from __future__ import annotations

from alembic import context

from rowstore.jobs.tables import jobs

context.configure(
    connection=context.config.attributes["connection"],
    # Of all system tables: those of jobs are loaded with them.
    target_metadata=jobs.metadata,
    transactional_ddl=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
