"""Fixtures for tests of the policy parts: an etcd for the session, a cluster of its own for each test."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from policy.records import Keys
from runtime.embedded.etcd import EmbeddedEtcd
from runtime.etcd import EtcdClient
from tests.support.cluster import Cluster, settings
from tests.support.ports import free_ports


@pytest.fixture(scope="session")
def etcd(tmp_path_factory):
    """An etcd that tests leave alone."""
    server = EmbeddedEtcd(tmp_path_factory.mktemp("etcd"), *free_ports(2))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def own_etcd(tmp_path):
    """An etcd that a test may break."""
    async with EmbeddedEtcd(tmp_path / "etcd", *free_ports(2)) as server:
        yield server


@pytest.fixture
async def cluster(etcd):
    """A cluster in the shared etcd."""
    async with EtcdClient(settings(etcd.endpoint)) as client:
        yield Cluster(client, Keys(f"test-{uuid.uuid4().hex[:8]}"))
