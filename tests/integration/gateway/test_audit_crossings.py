"""Border crossings, counted where calls enter and recorded when the gateway stops, over whole gateways."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

from policy.audit.chain import AuditChain
from policy.audit.entry import ChainCheck
from policy.records import Keys
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import types_pb2
from runtime.etcd import EtcdClient, EtcdSettings
from tests.support.gateways import refusal, running_site
from tests.support.markers import Markers


def purpose(word: str, home: str = "") -> dict[str, object]:
    stated = {"x-regiongate-purpose": word, "x-regiongate-origin": home}
    return {"timeout": 10, "metadata": [(name, value) for name, value in stated.items() if value]}


class Callers:
    """Clients that put a marker into every key and value."""

    def __init__(self, site) -> None:
        self.site = site
        self.markers = Markers(20_26)

    def key(self, code: str) -> types_pb2.Key:
        return types_pb2.Key(string_key=self.markers.text(code))

    async def put(self, idc: str, code: str, key: types_pb2.Key, word: str = "") -> None:
        columns = {"name": types_pb2.Value(string_value=self.markers.text(code))}
        request = pb.PutRowRequest(dataset="customers", region_code=code, key=key, columns=columns)
        await self.site[idc].rows.PutRow(request, **purpose(word))

    async def get(self, idc: str, code: str, key: types_pb2.Key, word: str = "", home: str = "") -> None:
        request = pb.GetRowRequest(dataset="customers", region_code=code, key=key)
        await self.site[idc].rows.GetRow(request, **purpose(word, home))

    async def list(self, idc: str, code: str, word: str = "", condition: str = "") -> None:
        request = pb.ListRowsRequest(dataset="customers", region_code=code, filter=condition)
        await self.site[idc].rows.ListRows(request, **purpose(word))

    async def recorded(self) -> dict[str, Counter]:
        """What the crossings of each gateway's IDC sum up to, in a sound trail without a marker in it."""
        found: dict[str, Counter] = {}
        keys = Keys(self.site.cluster)
        check = ChainCheck()
        async with EtcdClient(EtcdSettings((self.site.etcd_endpoint,))) as client:
            page = await AuditChain(client, keys).read(1, 1000)
            for item in (await client.list(keys.audit)).items:
                assert not list(self.markers.find(item.value + item.key.encode(), item.key))
        for entry in page.entries:
            check.take(entry)
            for row in entry.content["counts"] if entry.kind == "crossings" else ():
                line = tuple(value for name, value in row.items() if name not in {"count", "policy_revision"})
                found.setdefault(entry.content["idc"], Counter())[line] += row["count"]
                assert row["policy_revision"] == 1
        return found


def line(code, operation, rule, outcome, word="", *, withheld=False, asking="SG"):
    """As the fields of a counter are in the canonical form: by name."""
    return (asking, operation, outcome, word, code, rule, withheld)


async def test_crossings_are_counted_once_where_they_enter_and_home_traffic_never(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server) as site:
        callers = Callers(site)
        home = callers.key("DE")
        for idc in ("fra", "ams"):
            await callers.put(idc, "DE", home)
            await callers.get(idc, "DE", home)
            await callers.list(idc, "DE")
        await callers.put("sin", "DE", home, "entry")
        for _ in range(3):
            await callers.get("sin", "DE", home, "support")
        await callers.list("sin", "DE", "support")
        assert (await refusal(callers.get("sin", "DE", home)))[1] == "ACCESS_DENIED"
        for word in ("tourism", callers.markers.text()):
            assert (await refusal(callers.get("sin", "DE", home, word)))[1] == "ACCESS_DENIED"
            assert (await refusal(callers.list("sin", "DE", word)))[1] == "ACCESS_DENIED"
        condition = f'name = "{callers.markers.text()}"'
        assert (await refusal(callers.list("sin", "DE", "support", condition)))[1] == "ACCESS_DENIED"
        # A client that goes straight to the owner, and states its home, enters there.
        await callers.get("fra", "DE", home, "support", home="sin")
        # Rows of China pass through no gateway elsewhere: the caller is sent on, and is counted where it goes.
        assert (await refusal(callers.get("fra", "CN", callers.key("CN"), "audit")))[1] == "NOT_OWNED_HERE"
        for idc in ("sin", "fra", "ams", "sha"):
            await site[idc].end()
        assert await callers.recorded() == {
            "sin": {
                line("DE", "write", "eu-entry", "permitted", "entry"): 1,
                line("DE", "read", "eu-support", "permitted", "support", withheld=True): 4,
                line("DE", "read", "europe", "refused"): 1,
                line("DE", "read", "europe", "refused", "other"): 4,
                line("DE", "read", "eu-support", "refused", "support"): 1,
            },
            "fra": {line("DE", "read", "eu-support", "permitted", "support", withheld=True): 1},
        }


async def test_a_law_and_the_end_of_its_rollout_are_in_the_trail(etcd, postgres_server):
    async with running_site(etcd.endpoint, postgres_server) as site:
        async with EtcdClient(EtcdSettings((site.etcd_endpoint,))) as client:
            entries = []
            async with asyncio.timeout(15):
                while len(entries) < 2:
                    entries = (await AuditChain(client, Keys(site.cluster)).read(1, 1000)).entries
        law, end = entries
        assert (law.kind, law.content["revision"], law.content["rollout"]) == ("policy", 1, "r00000001")
        assert (end.kind, end.content["outcome"], end.content["rollout"]) == ("rollout", "done", "r00000001")
        assert end.content["shards_done"] == end.content["shards_total"] == 12


async def test_crossings_are_recorded_at_intervals_while_the_gateway_runs(etcd, postgres_server):
    often = {"audit_interval": timedelta(seconds=1)}
    async with running_site(etcd.endpoint, postgres_server, options=lambda _: often) as site:
        callers = Callers(site)
        assert (await refusal(callers.get("sin", "DE", callers.key("DE"))))[1] == "ACCESS_DENIED"
        found = {}
        async with asyncio.timeout(15):
            while not found:
                found = await callers.recorded()
        assert found == {"sin": {line("DE", "read", "europe", "refused"): 1}}
