"""Runners in the test's own process, on one etcd and one PostgreSQL for all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from regionjobs.definition import forget_registered
from tests.support.job_failures import SHARDS, failure_site, prepare_shards
from tests.support.job_runner_site import RunnerDatabases, runner_site
from tests.support.policy_fixtures import etcd
from tests.support.postgres import postgres_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from runtime.embedded.etcd import EmbeddedEtcd
    from runtime.embedded.postgres import EmbeddedPostgres
    from tests.support.job_failures import FailureSite
    from tests.support.job_runner_site import RunnerSite

__all__ = ["etcd", "postgres_server"]


@pytest.fixture(scope="session")
def runner_databases(postgres_server: EmbeddedPostgres) -> RunnerDatabases:
    """Where each IDC of a test gets its database."""
    return RunnerDatabases(postgres_server)


@pytest.fixture
async def site(etcd: EmbeddedEtcd, runner_databases: RunnerDatabases) -> AsyncIterator[RunnerSite]:
    """Two IDCs of one law: fra has both shards of DE and the first of FR, ams the second of FR."""
    async with runner_site(etcd.endpoint, runner_databases, "fra", "ams") as made:
        yield made


@pytest.fixture
async def asia(etcd: EmbeddedEtcd, runner_databases: RunnerDatabases) -> AsyncIterator[RunnerSite]:
    """The published example: sha has shards 1 and 2 of SG, sin has shard 0."""
    async with runner_site(etcd.endpoint, runner_databases, "sha", "sin") as made:
        yield made


@pytest.fixture(scope="session")
def shard_database(postgres_server: EmbeddedPostgres) -> str:
    """URL of a database with many shards."""
    return asyncio.run(prepare_shards(postgres_server))


@pytest.fixture(scope="session")
def free_shards() -> Iterator[int]:
    """Numbers of its shards that no test has had."""
    return iter(range(SHARDS))


@pytest.fixture
async def failing(shard_database: str, free_shards: Iterator[int]) -> AsyncIterator[FailureSite]:
    """A shard of one's own, for handlers that fail."""
    async with failure_site(shard_database, next(free_shards)) as made:
        yield made


@pytest.fixture(autouse=True)
def no_jobs_yet() -> Iterator[None]:
    """Jobs of other tests are not known here."""
    forget_registered()
    yield
    forget_registered()
