"""A PostgreSQL server for the whole test session, and fresh databases on it.

A test module takes part by `from tests.support.postgres import database_url, postgres_server  # noqa: F401`, or by the
fixtures of a conftest that does so.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from runtime.embedded.postgres import EmbeddedPostgres
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """One server for all tests of the session."""
    # Nobody may have to reach it (PostgreSQL does not run as root), so it is not below pytest's private folder.
    with tempfile.TemporaryDirectory(prefix="regiongate-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        # Its power is never cut, only its processes are.
        settings = {"fsync": "off", "full_page_writes": "off"}
        server = EmbeddedPostgres(Path(folder) / "server", free_port(), settings=settings)
        # The child watcher belongs to one loop, and the tests have their own.
        with asyncio.Runner() as runner:
            runner.run(server.start())
            yield server
            runner.run(server.stop())


async def create_database(server: EmbeddedPostgres, template: str = "template1") -> str:
    """A new database, empty unless a template is named; returns its URL."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    connection = await asyncpg.connect(server.url)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        await connection.close()
    parts = urlsplit(server.url)
    return urlunsplit(parts._replace(path=f"/{name}"))


@pytest.fixture
def fresh_database(postgres_server: EmbeddedPostgres) -> Callable[[], str]:
    """A factory of new, empty databases, for synchronous tests."""

    def make() -> str:
        return asyncio.run(create_database(postgres_server))

    return make


@pytest.fixture
async def database_url(postgres_server: EmbeddedPostgres) -> str:
    """A new, empty database."""
    return await create_database(postgres_server)
