"""A database with fences for each test: a copy of one that is made once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.postgres import create_database, database_url, fresh_database, postgres_server
from tests.support.row_databases import MovePair, RowDatabase, move_pair, prepare, prepare_target, row_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runtime.embedded.postgres import EmbeddedPostgres

__all__ = ["database_url", "fresh_database", "idc", "pair", "postgres_server", "prepared", "prepared_target"]


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


@pytest.fixture(scope="session")
def prepared_target(postgres_server: EmbeddedPostgres) -> str:
    """Name of a database with tables, their columns in another order, and without fences."""

    async def make() -> str:
        url = await create_database(postgres_server)
        await prepare_target(url)
        return urlsplit(url).path.removeprefix("/")

    return asyncio.run(make())


@pytest.fixture
async def pair(idc: RowDatabase, postgres_server: EmbeddedPostgres, prepared_target: str) -> AsyncIterator[MovePair]:
    """Two IDCs: `idc`, and one that has never had a shard."""
    url = await create_database(postgres_server, prepared_target)
    async with row_database(url) as target, move_pair(idc, target) as made:
        yield made
