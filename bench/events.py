"""How fast a change of the rules is in force: for gateways that are told of it, and for the person who applies it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING

import regiongate
from bench.harness import Figure, Reach, alternate, summarise
from bench.rows import DATASET, FOREIGN_REGION, IDC, REGION, key
from policy.effect import wait_effective
from policy.errors import AccessDenied
from policy.records import Keys
from policy.store import PolicyStore
from regiongate.demo.rollout import policy_stub
from regiongate.demo.stack import policy_file
from regiongate.v1 import policy_service_pb2 as pb
from runtime.etcd import EtcdClient, EtcdSettings

if TYPE_CHECKING:
    from gateway.client import Client
    from runtime.stack_file import StackFile

SECONDS = 10.0
_PURPOSE = "bench"
_RULES = f"""\
  - {{name: bench-asia, regions: [{REGION}], from: [CN, EU], operations: [read], purposes: [{_PURPOSE}]}}
  - {{name: bench-europe, regions: [{FOREIGN_REGION}], from: [SG], operations: [read], purposes: [{_PURPOSE}]}}
"""


async def policy_event(stack: StackFile, rounds: int) -> Figure:
    """From a new revision in etcd to its use in every gateway; against one etcd event on its way to a watcher."""
    keys = Keys(stack.cluster)
    async with EtcdClient(EtcdSettings(endpoints=stack.etcd_endpoints)) as client:
        store = PolicyStore(client, keys)

        async def ours() -> float:
            base = await store.base()
            assert base.current is not None
            record = replace(base.current, revision=base.revision + 1, parent=base.revision, rollout="")
            at = await store.commit(base, record, None)
            start = time.perf_counter()
            deadline = asyncio.get_running_loop().time() + SECONDS
            effect = await wait_effective(client, keys, record.revision, at, deadline=deadline, schema_grace=0.0)
            assert effect.is_effective, effect.waiting_for
            return (time.perf_counter() - start) * 1e3

        measured = await alternate(rounds * 3, ours, lambda: _event(client))
    return summarise("policy_event", "ms", "etcd event", Reach(20, at_least=False, on_value=True), measured)


async def _event(client: EtcdClient) -> float:
    """Milliseconds from an acknowledged write in etcd until a watcher has it."""
    revision = await client.put("/regiongate-bench/event", b"0")
    events = client.watch("/regiongate-bench/event", start_revision=revision + 1)
    seen = asyncio.ensure_future(anext(events))
    await client.get("/regiongate-bench/event")
    await client.put("/regiongate-bench/event", b"1")
    start = time.perf_counter()
    await asyncio.wait_for(seen, SECONDS)
    return max((time.perf_counter() - start) * 1e3, 0.01)


async def policy_effective(stack: StackFile, rounds: int) -> Figure:
    """ApplyPolicy of access rules until a read in each of the four IDCs is decided by them; against one etcd event."""
    law = policy_file().read_text(encoding="utf-8")
    turns = cycle((True, False))
    async with AsyncExitStack() as opened:
        client = await opened.enter_async_context(EtcdClient(EtcdSettings(endpoints=stack.etcd_endpoints)))
        stub = await opened.enter_async_context(policy_stub(stack.idcs[IDC].gateway))
        doors = {
            idc: await opened.enter_async_context(regiongate.connect(entry.gateway, purpose=_PURPOSE))
            for idc, entry in stack.idcs.items()
        }

        async def ours() -> float:
            is_allowed = next(turns)
            document = law.replace("\naccess:\n", f"\naccess:\n{_RULES}", 1) if is_allowed else law
            start = time.perf_counter()
            await stub.ApplyPolicy(pb.ApplyPolicyRequest(document=document, author="bench"), timeout=SECONDS)
            seen = await asyncio.gather(*(_may_read(door, idc) for idc, door in doors.items()))
            took = (time.perf_counter() - start) * 1e3
            assert seen == [is_allowed] * len(doors), seen
            return took

        measured = await alternate(rounds, ours, lambda: _event(client))
    return summarise("policy_effective", "ms", "etcd event", Reach(150, at_least=False, on_value=True), measured)


async def _may_read(door: Client, idc: str) -> bool:
    """Whether a row of another jurisdiction may be read in the IDC."""
    try:
        await door.get(DATASET, FOREIGN_REGION if idc == IDC else REGION, key(1))
    except AccessDenied:
        return False
    return True
