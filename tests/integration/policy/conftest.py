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
    server = EmbeddedEtcd(tmp_path_factory.mktemp("etcd"), *free_ports(2))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def cluster(etcd):
    async with EtcdClient(settings(etcd.endpoint)) as client:
        yield Cluster(client, Keys(f"test-{uuid.uuid4().hex[:8]}"))
