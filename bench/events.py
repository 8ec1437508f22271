"""`policy_event`: from an acknowledged policy write to its use in every gateway's table."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.harness import Figure, Reach, alternate, summarise
from policy.effect import wait_effective
from policy.records import Keys
from policy.store import PolicyStore
from runtime.etcd import EtcdClient, EtcdSettings

if TYPE_CHECKING:
    from runtime.stack_file import StackFile

SECONDS = 10.0


async def policy_event(stack: StackFile, rounds: int) -> Figure:
    """Stores the current document as a new revision; against one etcd event on its way to a watcher."""
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

        async def baseline() -> float:
            revision = await client.put("/regiongate-bench/event", b"0")
            events = client.watch("/regiongate-bench/event", start_revision=revision + 1)
            seen = asyncio.ensure_future(anext(events))
            await client.get("/regiongate-bench/event")
            await client.put("/regiongate-bench/event", b"1")
            start = time.perf_counter()
            await asyncio.wait_for(seen, SECONDS)
            return max((time.perf_counter() - start) * 1e3, 0.01)

        measured = await alternate(rounds * 3, ours, baseline)
    return summarise("policy_event", "ms", "etcd event", Reach(20, at_least=False, on_value=True), measured)
