"""Brings an IDC's database up to what this release and the policy need. Only ever adds: no row is touched.

Any number of gateways may do it at once, since each step runs under an advisory lock of the database and looks at what
is there. A column that is there with another type is refused by name, never converted (law L8).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from policy.errors import RegiongateError
from rowstore.driver_errors import DRIVER_ERRORS, translate
from rowstore.tables import dataset_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import asyncpg
    from sqlalchemy import Connection, Table
    from sqlalchemy.types import TypeEngine

    from policy.model import Dataset
    from rowstore.database import Database

OLDEST_SERVER: Final = 15
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('regiongate.schema'))"
_SHORT_LOCK_WAIT: Final = "SET LOCAL lock_timeout = '2s'"
"""A column waits for the table's readers, and new readers wait behind it: not for long."""

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_DIALECT: Final = asyncpg_dialect()

_COLUMNS: Final = """
SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_attribute a
WHERE a.attrelid = to_regclass(quote_ident(current_schema()) || '.' || quote_ident($1))
    AND a.attnum > 0 AND NOT a.attisdropped
"""


async def migrate(url: str) -> None:
    """Brings the system tables up to this release.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or is too slow.
        RegiongateError: it is too old, or a newer release has migrated it.
    """
    # Costs a third of a second to import, and is needed once in a process's life.
    import asyncpg  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    engine = create_async_engine(
        "postgresql+asyncpg://",
        # The driver reads the URL, so that it means the same here as in `rowstore.database`.
        async_creator=partial(asyncpg.connect, url, timeout=5, command_timeout=30, server_settings=_MIGRATION_SETTINGS),
        poolclass=NullPool,
        hide_parameters=True,
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    except (*DRIVER_ERRORS, ValueError, SQLAlchemyError) as error:
        failure = translate(_driver_error(error))
    else:
        return
    finally:
        await engine.dispose()
    raise failure


_MIGRATION_SETTINGS: Final = {"application_name": "regiongate-migrate", "lock_timeout": "10s"}


def _driver_error(error: BaseException) -> BaseException:
    """The driver's own error inside SQLAlchemy's wrappers."""
    original: object = getattr(error, "orig", None)
    cause = original.__cause__ if isinstance(original, BaseException) else None
    return cause or error


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    version = connection.dialect.server_version_info or (0,)
    if int(version[0]) < OLDEST_SERVER:
        raise RegiongateError(f"PostgreSQL {version[0]} is too old: {OLDEST_SERVER} or newer is needed")
    connection.exec_driver_sql(_LOCK)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar() is not None:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
        unknown = sorted(set(found) - known)
        if unknown:
            raise RegiongateError(f"a newer release has migrated the database (to {unknown[0]}); use that release")
    command.upgrade(config, "head")


async def ensure_datasets(database: Database, datasets: Iterable[Dataset]) -> None:
    """Makes the tables and columns that the datasets lack here.

    Raises:
        DatabaseUnavailable: the database does not answer.
        RegiongateError: a column or key is there with another type; the tables that could be made are made.
    """
    problems: list[str] = []
    async with database.connection() as connection:
        for dataset in datasets:
            problems.extend(await _ensure(connection, dataset))
    if problems:
        raise RegiongateError("; ".join(problems))


async def _ensure(connection: asyncpg.Connection, dataset: Dataset) -> list[str]:
    """One dataset in one transaction; returns what stands in the way."""
    table = dataset_table(dataset)
    wanted = {column.name: _type_name(column.type) for column in table.columns}
    found = await _read_columns(connection, table)
    # Mostly nothing is missing; then there is no lock to wait for.
    if found.keys() < wanted.keys() or not found:
        async with connection.transaction():
            await connection.execute(_LOCK)
            found = await _read_columns(connection, table)
            await connection.execute(_SHORT_LOCK_WAIT)
            await _add(connection, table, found)
        found = await _read_columns(connection, table)
    return [
        f"column {name} of dataset {dataset.name} has type {found[name]} in the database, not {sql_type}"
        for name, sql_type in wanted.items()
        if found.get(name) != sql_type
    ]


async def _read_columns(connection: asyncpg.Connection, table: Table) -> Mapping[str, str]:
    return {str(row["name"]): str(row["type"]) for row in await connection.fetch(_COLUMNS, table.name)}


async def _add(connection: asyncpg.Connection, table: Table, found: Mapping[str, str]) -> None:
    if not found:
        await connection.execute(str(CreateTable(table).compile(dialect=_DIALECT)))
        for index in table.indexes:
            await connection.execute(str(CreateIndex(index).compile(dialect=_DIALECT)))
        return
    for column in table.columns:
        if column.name not in found:
            # Without a default, adding a column rewrites no row; the lock on the table is short.
            await connection.execute(
                f"ALTER TABLE {_quote(table.name)} ADD COLUMN {_quote(column.name)} {_type_name(column.type)}"
            )


def _type_name(sql_type: TypeEngine[object]) -> str:
    """The type as PostgreSQL's `format_type` says it."""
    return sql_type.compile(_DIALECT).partition(" COLLATE ")[0].lower()


def _quote(name: str) -> str:
    return _DIALECT.identifier_preparer.quote(name)
