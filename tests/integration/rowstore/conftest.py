"""A database with fences for each test: a copy of one that is made once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.postgres import create_database, database_url, fresh_database, postgres_server
from tests.support.row_databases import RowDatabase, prepare, row_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.embedded.postgres import EmbeddedPostgres

__all__ = ["database_url", "fresh_database", "idc", "postgres_server", "prepared"]


@pytest.fixture(scope="session")
def prepared(postgres_server: EmbeddedPostgres) -> str:
    """Name of a database with tables and fences."""

    async def make() -> str:
        url = await create_database(postgres_server)
        await prepare(url)
        return urlsplit(url).path.removeprefix("/")

    return asyncio.run(make())


@pytest.fixture
async def idc(postgres_server: EmbeddedPostgres, prepared: str) -> AsyncIterator[RowDatabase]:
    """One IDC's database."""
    async with row_database(await create_database(postgres_server, prepared)) as made:
        yield made
