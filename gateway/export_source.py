"""Where a target pulls from: the live gateways of the source, one after the other, each on a channel for bulk alone.

A copy shares no connection with the operations between the IDCs: its bytes would stand in their way. A channel that has
failed is given up, so that the next try connects at once instead of waiting for the transport's own pauses.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

import grpc.aio

from gateway.export_parts import decode_part
from gateway.identity import INGRESS, TRACEPARENT
from gateway.status import error_from_rpc
from gateway.values import set_time
from policy.errors import PeerUnreachable, RegiongateError
from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub
from rowstore.moving.model import End
from runtime.tasks import is_cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gateway.hold import FollowerLike
    from policy.records import GatewayRecord
    from rowstore.moving.model import ExportPart, ImportProgress

READ_SECONDS: Final = 20.0
"""How long the source may send nothing, before it is given up."""


class _Line:
    """A channel, and how many exports use it."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.users = 0


class ExportSource:
    """The sources of one gateway's imports."""

    def __init__(self, idc: str, view: FollowerLike, connect: Callable[[GatewayRecord], grpc.aio.Channel]) -> None:
        """Opens nothing yet; `connect` makes a channel to the peer listener of a gateway."""
        self._idc = idc
        self._view = view
        self._connect = connect
        self._lines: dict[str, _Line] = {}
        self._turn = 0

    async def export(
        self, move: pb.MoveRef, after: ImportProgress, *, is_final: bool, traceparent: str
    ) -> AsyncGenerator[ExportPart]:
        """The parts of one export, up to its end; close it when it is left early.

        Raises:
            PeerUnreachable: no gateway of the source lives, or the stream broke.
            RegiongateError: what the source has refused it with.
        """
        request = pb.ExportShardRequest(move=move, after_seq=after.copied_seq, is_final=is_final)
        if after.copied_time is not None:
            set_time(request.after_time, after.copied_time)
        metadata = [(INGRESS, self._idc), *([(TRACEPARENT, traceparent)] if traceparent else [])]
        line = self._pick(move.source_idc)
        line.users += 1
        # The generated type of the stub is that of the blocking one.
        call = cast("Any", ShardServiceStub(line.channel)).ExportShard(request, metadata=metadata)
        try:
            while True:
                part = decode_part(await self._read(line, call, move.source_idc))
                yield part
                if isinstance(part, End):
                    return
        finally:
            call.cancel()
            line.users -= 1
            if not line.users and self._lines.get(line.address) is not line:
                await line.channel.close()

    async def close(self) -> None:
        """Ends all exports."""
        lines, self._lines = self._lines, {}
        await asyncio.gather(*(line.channel.close() for line in lines.values()))

    async def _read(self, line: _Line, call: Any, idc: str) -> pb.ExportShardResponse:  # noqa: ANN401 (grpc.aio's type is generic in what the stub hides)
        try:
            async with asyncio.timeout(READ_SECONDS):
                message = await call.read()
            if isinstance(message, pb.ExportShardResponse):
                return message
            raise PeerUnreachable(f"the export of {idc} has ended early")
        except grpc.aio.AioRpcError as error:
            self._give_up(line)
            told = error_from_rpc(error)
            if type(told) is RegiongateError:
                raise PeerUnreachable(f"the export of {idc} has failed there") from error
            raise told from error
        except TimeoutError:
            self._give_up(line)
            raise PeerUnreachable(f"the gateway of {idc} sends nothing") from None
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            raise PeerUnreachable(f"the gateway of {idc} has gone") from error

    def _pick(self, idc: str) -> _Line:
        live = self._view.gateways.get(idc, ())
        if not live:
            raise PeerUnreachable(f"no gateway of {idc} can be reached")
        self._turn += 1
        record = live[self._turn % len(live)]
        line = self._lines.get(record.peer_address)
        if line is None:
            line = self._lines[record.peer_address] = _Line(record.peer_address, self._connect(record))
        return line

    def _give_up(self, line: _Line) -> None:
        """The next export has a new channel; this one is closed by its last user."""
        if self._lines.get(line.address) is line:
            del self._lines[line.address]
