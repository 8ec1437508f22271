"""Runners in the test's own process, on one etcd and one PostgreSQL for all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from regionjobs.definition import forget_registered
from tests.support.job_failures import SHARDS, failure_site, prepare_shards
from tests.support.job_runner_site import prepare_template, runner_site
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
def runner_template(postgres_server: EmbeddedPostgres) -> str:
    """Name of the database that each IDC gets a copy of."""
    return asyncio.run(prepare_template(postgres_server))


@pytest.fixture
async def site(
    etcd: EmbeddedEtcd, postgres_server: EmbeddedPostgres, runner_template: str
) -> AsyncIterator[RunnerSite]:
    """Two IDCs of one law: fra has both shards of DE and the first of FR, ams the second of FR."""
    async with runner_site(etcd.endpoint, postgres_server, runner_template, "fra", "ams") as made:
        yield made


@pytest.fixture
async def asia(
    etcd: EmbeddedEtcd, postgres_server: EmbeddedPostgres, runner_template: str
) -> AsyncIterator[RunnerSite]:
    """The published example: sha has shards 1 and 2 of SG, sin has shard 0."""
    async with runner_site(etcd.endpoint, postgres_server, runner_template, "sha", "sin") as made:
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
