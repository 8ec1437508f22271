"""The blocking front, from threads that have no loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

import regiongate
import regiongate.blocking
from regiongate.errors import PeerUnreachable, RowNotFound
from tests.integration.client.cluster import running
from tests.support.ports import free_port


async def test_a_script_reads_and_writes_without_a_loop():
    def script(target: str) -> None:
        with regiongate.blocking.connect(target, purpose="support") as client:
            receipt = client.put("customers", "DE", "k", {"spend": 1})
            assert client.get("customers", "DE", "k").version == receipt.version
            results = client.batch_write("customers", [regiongate.Put("DE", f"k{n}", {"spend": n}) for n in range(9)])
            assert all(isinstance(result, regiongate.Receipt) for result in results)
            assert [row.key for row in client.list("customers", "DE", page_size=3)][-1] == "k8"
            assert next(client.list("customers", "DE")).key == "k"
            assert len(client.list_page("customers", "DE").rows) == 10
            client.delete("customers", "DE", "k")
            with pytest.raises(RowNotFound):
                client.get("customers", "DE", "k")
            assert client.home_idc == "fra"
            assert "orders" in client.datasets
        with pytest.raises(RuntimeError, match="closed"):
            client.get("customers", "DE", "k")

    async with running() as sites:
        await asyncio.to_thread(script, sites["fra"].address)
        assert {asked.purpose for asked in sites["fra"].world.asked if asked.action == "get"} == {"support"}


async def test_many_threads_share_one_client():
    def script(target: str) -> set[int]:
        with regiongate.blocking.connect(target) as client, ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda n: client.put("customers", "SG", str(n), {"spend": n}), range(200)))
            rows = pool.map(lambda n: client.get("customers", "SG", str(n)), range(200))
            return {row.values["spend"] for row in rows}

    async with running() as sites:
        assert await asyncio.to_thread(script, sites["sin"].address) == set(range(200))


def test_a_script_is_told_when_nobody_listens():
    settings = regiongate.ClientSettings(connect_timeout=timedelta(seconds=0.2))
    with (
        pytest.raises(PeerUnreachable),
        regiongate.blocking.connect(f"127.0.0.1:{free_port()}", settings=settings),
    ):
        pass
