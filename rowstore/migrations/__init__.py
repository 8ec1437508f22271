"""Alembic migrations of the system tables. Datasets' tables follow the policy instead (`rowstore.schema`)."""
