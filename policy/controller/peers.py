"""Calls from the controller to the IDCs' gateways, on their peer listeners.

The steps of a move are idempotent and name their attempt, so a step whose answer was lost is asked of another gateway
of the IDC. What a gateway refuses is told as `StepFailed`, by the name of its status: no text of theirs holds anything
of a row.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

from regiongate.v1 import shard_service_pb2 as pb
from regiongate.v1.shard_service_pb2_grpc import ShardServiceStub
from runtime.tasks import is_cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence

    from google.protobuf.message import Message

    from regiongate.v1.shard_service_pb2_grpc import ShardServiceAsyncStub
    from runtime.config import PeerTlsOptions

_TRY_ANOTHER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
NO_GATEWAY = "NO_GATEWAY"
"""Status of a step for an IDC without a live gateway."""
SILENT = "SILENT"
"""Status of an import that tells nothing for too long."""
PASSING = frozenset({NO_GATEWAY, SILENT, *(code.name for code in _TRY_ANOTHER)})
"""Failures that waiting, or another gateway, may mend."""


class OpeningFailed(Exception):
    """The IDC did not open the fences; the text says why, without anything of a row."""


class StepFailed(Exception):
    """An IDC did not do a step of a move."""

    def __init__(self, idc: str, status: str, why: str) -> None:
        super().__init__(f"{idc}: {status}: {why}" if why else f"{idc}: {status}")
        self.status = status


class PeerCalls:
    """Keeps a channel for each gateway that it has talked to."""

    def __init__(self, credentials: grpc.ChannelCredentials | None, timeout: float) -> None:
        self._credentials = credentials
        self._timeout = timeout
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def open_shards(
        self, peers: Sequence[str], shards: Mapping[tuple[str, int], int]
    ) -> dict[tuple[str, int], str]:
        """Has one of the IDC's gateways open the fences of shards (with their epochs).

        Returns the shards that are not open at that epoch, and why. Raises OpeningFailed when no gateway has done it.
        """
        refs = [pb.ShardRef(region_code=code, shard=shard, epoch=epoch) for (code, shard), epoch in shards.items()]
        reason = "no gateway"
        for address in peers:
            try:
                answer = await self._stub(address).OpenShards(pb.OpenShardsRequest(shards=refs), timeout=self._timeout)
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
                if error.code() in _TRY_ANOTHER:
                    continue
                break
            found = {(fence.region_code, fence.shard): fence for fence in answer.fences}
            return {shard: why for shard, epoch in shards.items() if (why := _why_not(found.get(shard), epoch))}
        raise OpeningFailed(reason)

    async def step(
        self, idc: str, peers: Sequence[str], name: str, request: Message, *, timeout: float, traceparent: str
    ) -> Any:  # noqa: ANN401 (the answer that belongs to the method)
        """One step of a move by whichever of the IDC's gateways answers; raises `StepFailed`."""
        failure = StepFailed(idc, NO_GATEWAY, "no gateway is live")
        for address in peers:
            method: Callable[..., Any] = getattr(self._stub(address), name)
            try:
                with _told_as_failures(idc):
                    return await method(request, timeout=timeout, metadata=_trace(traceparent))
            except StepFailed as error:
                failure = error
                if error.status not in PASSING:
                    break
        raise failure

    @asynccontextmanager
    async def importing(
        self, idc: str, peers: Sequence[str], request: pb.ImportShardRequest, *, idle: float, traceparent: str
    ) -> AsyncGenerator[AsyncIterator[pb.ImportShardResponse]]:
        """The answers of an import by the first of the gateways, which ends with the block; raises `StepFailed`.

        `idle` seconds without a word end it.
        """
        if not peers:
            raise StepFailed(idc, NO_GATEWAY, "no gateway is live")
        call = self._stub(peers[0]).ImportShard(request, metadata=_trace(traceparent))
        try:
            with _told_as_failures(idc):
                yield self._answers(idc, call, idle)
        finally:
            call.cancel()

    async def _answers(self, idc: str, call: Any, idle: float) -> AsyncIterator[pb.ImportShardResponse]:  # noqa: ANN401 (grpc.aio's type is generic in what the stub hides)
        while True:
            try:
                async with asyncio.timeout(idle):
                    answer = await call.read()
            except TimeoutError:
                raise StepFailed(idc, SILENT, f"nothing was heard of the import for {idle:g} s") from None
            if answer is grpc.aio.EOF:
                return
            yield answer

    async def close(self) -> None:
        """Closes all channels."""
        while self._channels:
            await self._channels.popitem()[1].close()

    async def keep_only(self, addresses: set[str]) -> None:
        """Closes the channels to gateways that are gone."""
        for address in self._channels.keys() - addresses:
            await self._channels.pop(address).close()

    def _stub(self, address: str) -> ShardServiceAsyncStub:
        channel = self._channels.get(address)
        if channel is None:
            channel = (
                grpc.aio.secure_channel(address, self._credentials)
                if self._credentials is not None
                else grpc.aio.insecure_channel(address)
            )
            self._channels[address] = channel
        return cast("ShardServiceAsyncStub", ShardServiceStub(channel))


@contextmanager
def _told_as_failures(idc: str) -> Generator[None]:
    """Turns what a call raises into `StepFailed`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise StepFailed(idc, error.code().name, error.details() or "") from error
    except (grpc.aio.UsageError, asyncio.CancelledError) as error:
        if is_cancelled():
            raise
        raise StepFailed(idc, grpc.StatusCode.UNAVAILABLE.name, "the gateway has gone") from error


def _trace(traceparent: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", traceparent),) if traceparent else ()


def _why_not(fence: pb.ShardFence | None, epoch: int) -> str:
    if fence is None:
        return "no fence"
    if (fence.mode, fence.epoch) != ("serving", epoch):
        return f"its fence is {fence.mode} at epoch {fence.epoch}, not serving at {epoch}"
    return ""


def credentials_of(options: PeerTlsOptions) -> grpc.ChannelCredentials | None:
    """What the controller shows to gateways and expects of them; None for plaintext."""
    if not (options.peer_ca_file and options.peer_key_file and options.peer_cert_file):
        return None
    return grpc.ssl_channel_credentials(
        options.peer_ca_file.read_bytes(), options.peer_key_file.read_bytes(), options.peer_cert_file.read_bytes()
    )
