"""Applies the new law as a client of the policy service, and follows its rollout to the end."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

import grpc.aio
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from regiongate.cli.output import stderr
from regiongate.v1 import policy_service_pb2 as pb
from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub

APPLY_SECONDS = 30.0
ROLLOUT_SECONDS = 90.0
_MAX_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Outcome:
    """What came of an apply."""

    revision: int
    acknowledged: int
    state: str = ""
    note: str = ""
    moves: dict[tuple[str, int], pb.ShardMove] = field(default_factory=dict[tuple[str, int], pb.ShardMove])

    @property
    def seconds(self) -> float:
        """From the first move's start to the last one's end."""
        moves = self.moves.values()
        start = min(move.start_time.ToDatetime() for move in moves)
        return (max(move.end_time.ToDatetime() for move in moves) - start).total_seconds()


class MovedRegion(NamedTuple):
    """The moves of one RegionCode between two IDCs, in one line."""

    region_code: str
    source: str
    target: str
    shards: int
    rows: int
    median_stall_ms: float
    longest_stall_ms: float


@asynccontextmanager
async def policy_stub(address: str) -> AsyncGenerator[PolicyServiceAsyncStub]:
    """The policy service of a gateway."""
    options = (("grpc.max_receive_message_length", _MAX_BYTES),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield cast("PolicyServiceAsyncStub", PolicyServiceStub(channel))


async def apply_and_follow(address: str, document: str, file: str, message: str, traceparent: str) -> Outcome:
    """Applies a document and returns when its rollout has ended; shows the progress meanwhile.

    Raises:
        TimeoutError: the rollout has not ended in time.
        grpc.aio.AioRpcError: a call failed.
    """
    async with policy_stub(address) as stub, asyncio.timeout(APPLY_SECONDS + ROLLOUT_SECONDS):
        answer = await stub.ApplyPolicy(
            pb.ApplyPolicyRequest(document=document, file=file, author="demo", message=message),
            timeout=APPLY_SECONDS,
            metadata=(("traceparent", traceparent),),
        )
        outcome = Outcome(answer.revision, len(answer.acknowledged))
        if answer.rollout:
            await _follow(stub, answer.rollout, outcome)
        return outcome


async def _follow(stub: PolicyServiceAsyncStub, rollout: str, outcome: Outcome) -> None:
    columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=stderr(), transient=True) as progress:
        bar = progress.add_task("shards moved", total=None, note="")
        async for answer in stub.WatchRollout(pb.WatchRolloutRequest(rollout=rollout), timeout=ROLLOUT_SECONDS):
            outcome.state, outcome.note = answer.rollout.state, answer.rollout.note
            for move in answer.rollout.moves:
                outcome.moves[move.region_code, move.shard] = move
            phases = Counter(move.phase for move in outcome.moves.values())
            note = ", ".join(f"{phase} {count}" for phase, count in phases.items() if phase not in ("waiting", "done"))
            progress.update(bar, total=answer.rollout.shards_total, completed=answer.rollout.shards_done, note=note)


def by_region(moves: Sequence[pb.ShardMove]) -> list[MovedRegion]:
    """One line for each RegionCode and pair of IDCs."""
    groups: defaultdict[tuple[str, str, str], list[pb.ShardMove]] = defaultdict(list)
    for move in moves:
        groups[move.region_code, move.from_idc, move.to_idc].append(move)
    return [
        MovedRegion(
            *pair,
            len(group),
            sum(move.rows_copied for move in group),
            statistics.median(move.stall_ms for move in group),
            max(move.stall_ms for move in group),
        )
        for pair, group in sorted(groups.items())
    ]
