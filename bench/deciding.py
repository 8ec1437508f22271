"""`resolve`: what routing and judging cost in process, without any I/O."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.harness import Figure, Reach, Round, summarise
from policy.compile import compile_policy
from policy.loading import load_policy_files
from policy.model import Operation
from policy.records import ShardRecord
from policy.table import RoutingTable

if TYPE_CHECKING:
    from collections.abc import Callable

POLICY = Path(__file__).resolve().parents[1] / "deploy/demo/policy.yaml"
CALLS = 100_000


def _table() -> RoutingTable:
    policy = compile_policy(load_policy_files(POLICY).document, revision=1)
    shards = (
        (code, shard, ShardRecord(owner=next(iter(it.weights)), epoch=1, phase="serving", policy_revision=1))
        for code, it in policy.regions.items()
        for shard in range(it.shards)
    )
    return RoutingTable.build(policy, shards, store_revision=1)


def _microseconds(once: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        once()
    return (time.perf_counter() - start) / CALLS * 1e6


def resolve(rounds: int) -> Figure:
    """Resolve and decide for one row, against a bare dictionary look-up in a function of the same shape."""
    table = _table()
    policy, askers = table.policy, ("sin",)
    bare = {"DE": "fra"}

    def ours() -> None:
        table.resolve("DE", "customer-123456")
        policy.decide("customers", "DE", askers, Operation.READ, "support")

    def baseline() -> str:
        return bare["DE"]

    measured = [Round(_microseconds(ours), _microseconds(baseline)) for _ in range(rounds)]
    return summarise("resolve", "us", "dictionary look-up", Reach(1, at_least=False, on_value=True), measured)
