"""How much a plan would copy: each source IDC is asked by a call to one of its gateways.

A plan is useful without it. So the time for it is bounded, and an IDC that does not answer is named, not waited for.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import grpc.aio
import structlog

from gateway.identity import INGRESS
from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.hold import FollowerLike
    from policy.intent import Shard
    from policy.plan import ShardMove
    from policy.records import GatewayRecord

log = structlog.get_logger("regiongate.gateway.measures")

MEASURE_SECONDS: Final = 5.0
_SHARDS_PER_CALL: Final = 1000
_MOST_GATEWAYS: Final = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """What the IDCs have said."""

    sizes: Mapping[Shard, tuple[int, int]] = field(default_factory=dict["Shard", tuple[int, int]])
    """Rows and bytes."""
    unreachable: tuple[str, ...] = ()
    """IDCs that could not be asked."""


class Measures(Protocol):
    """Knows how much there is of shards."""

    async def measure(self, moves: Sequence[ShardMove]) -> Measured:
        """Asks the sources of the moves; never fails."""
        ...


class PeerMeasures:
    """Asks the peer listeners."""

    def __init__(self, idc: str, view: FollowerLike, connect: Callable[[GatewayRecord], grpc.aio.Channel]) -> None:
        """Opens nothing yet.

        Args:
            idc: Where this gateway stands.
            view: Knows the live gateways.
            connect: Makes a channel to the peer listener of a gateway.
        """
        self._idc = idc
        self._view = view
        self._connect = connect

    async def measure(self, moves: Sequence[ShardMove]) -> Measured:
        """Asks the sources of the moves, all at once."""
        by_source: dict[str, list[Shard]] = {}
        for move in moves:
            by_source.setdefault(move.from_idc, []).append(move.key)
        answers = await asyncio.gather(*(self._ask(idc, shards) for idc, shards in by_source.items()))
        sizes: dict[Shard, tuple[int, int]] = {}
        for answer in answers:
            sizes.update(answer or {})
        unreachable = (idc for idc, answer in zip(by_source, answers, strict=True) if answer is None)
        return Measured(sizes, tuple(sorted(unreachable)))

    async def _ask(self, idc: str, shards: Sequence[Shard]) -> dict[Shard, tuple[int, int]] | None:
        """What one IDC has of the shards; None when no gateway there answers in time."""
        deadline = asyncio.get_running_loop().time() + MEASURE_SECONDS
        for record in self._view.gateways.get(idc, ())[:_MOST_GATEWAYS]:
            channel = self._connect(record)
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._call(channel, shards)
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, TimeoutError, OSError) as error:
                reason = str(error.code()) if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
                log.warning("cannot ask how much there is to copy", peer_idc=idc, reason=reason)
            finally:
                await channel.close()
        return None

    async def _call(self, channel: grpc.aio.Channel, shards: Sequence[Shard]) -> dict[Shard, tuple[int, int]]:
        # The generated type of the stub is that of the blocking one.
        stub = cast("Any", ShardServiceStub(channel))
        sizes: dict[Shard, tuple[int, int]] = {}
        for start in range(0, len(shards), _SHARDS_PER_CALL):
            refs = [
                pb.ShardRef(region_code=code, shard=shard, epoch=self._epoch(code, shard))
                for code, shard in shards[start : start + _SHARDS_PER_CALL]
            ]
            answer: pb.MeasureShardsResponse = await stub.MeasureShards(
                pb.MeasureShardsRequest(shards=refs), metadata=[(INGRESS, self._idc)], timeout=MEASURE_SECONDS
            )
            sizes.update({(it.region_code, it.shard): (it.rows, it.bytes) for it in answer.sizes})
        return sizes

    def _epoch(self, code: str, shard: int) -> int:
        table = self._view.table
        record = table.record(code, shard) if table is not None else None
        return record.epoch if record is not None else 1
