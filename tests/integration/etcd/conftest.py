"""One etcd of each release for the whole session; each test keeps to a prefix of its own."""

import itertools

import pytest

from runtime.etcd import EtcdClient
from tests.support.etcd import debian_binary, running_etcd, settings_of

_numbers = itertools.count()


@pytest.fixture(scope="session")
def wheel_etcd():
    with running_etcd() as etcd:
        yield etcd


@pytest.fixture(scope="session")
def debian_etcd():
    with running_etcd(debian_binary()) as etcd:
        yield etcd


@pytest.fixture(params=["wheel_etcd", "debian_etcd"])
def etcd(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
async def client(etcd):
    async with EtcdClient(settings_of(etcd)) as client:
        yield client


@pytest.fixture
def prefix():
    return f"/test/{next(_numbers)}/"
