"""Reaches both homes of a row, wherever they are: this IDC's database directly, another IDC by one of its gateways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from gateway.identity import INGRESS
from gateway.peer_calls import hop_metadata, told_as_ours
from gateway.values import read_time, set_key
from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub
from rowstore.model import Written

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.operations import CallContext
    from gateway.peers import Peers
    from gateway.row_move_receiver import RowReceiver
    from policy.model import Route
    from regiongate.v1 import row_service_pb2


class RowHomes:
    """Asks for one step at a time."""

    def __init__(self, idc: str, receiver: RowReceiver, peers: Peers) -> None:
        self._idc = idc
        self._receiver = receiver
        self._peers = peers

    async def ask(self, idc: str, request: pb.ReceiveRowRequest, seconds: float) -> pb.ReceiveRowResponse:
        """Has a step done at an IDC; raises what `RowReceiver.receive` does, and `PeerUnreachable`."""
        if idc == self._idc:
            return await self._receiver.receive(request, self._idc)
        metadata = [(INGRESS, self._idc)]
        return await self._call(idc, lambda stub: stub.ReceiveRow(request, metadata=metadata, timeout=seconds))

    async def forward(
        self, idc: str, request: row_service_pb2.MoveRowRequest, context: CallContext, seconds: float
    ) -> row_service_pb2.MoveRowResponse:
        """Hands a whole move to the owner of the row's old home; raises what it raises, and `PeerUnreachable`."""
        forwarded = pb.ForwardMoveRowRequest(request=request, purpose=context.purpose)
        metadata = hop_metadata(self._idc, context)
        answer = await self._call(idc, lambda stub: stub.ForwardMoveRow(forwarded, metadata=metadata, timeout=seconds))
        return answer.response

    async def _call(self, idc: str, send: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401 (the answer's type is its method's)
        # The generated type of the stub is that of the blocking one.
        stub = cast("Any", ShardServiceStub(self._peers.channel(idc)))
        with told_as_ours(idc):
            return await send(stub)


def step_request(
    step: pb.RowMoveStep.ValueType, route: Route, dataset: str, key: str | int, *, move_id: str, request_id: str
) -> pb.ReceiveRowRequest:
    """A step at the home that the route leads to."""
    request = pb.ReceiveRowRequest(
        step=step,
        move_id=move_id,
        dataset=dataset,
        shard=pb.ShardRef(region_code=route.region_code, shard=route.shard, epoch=route.epoch),
        request_id=request_id,
    )
    set_key(request.key, key)
    return request


def receipt_of(answer: pb.ReceiveRowResponse) -> Written:
    """What a settled row was written as."""
    return Written(answer.receipt.version, read_time(answer.receipt.update_time))
