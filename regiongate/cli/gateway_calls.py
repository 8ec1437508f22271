"""The few calls that bring a new stack to work: apply a policy and wait until its shards are open."""

from __future__ import annotations

import asyncio
import getpass
from typing import TYPE_CHECKING, Self, cast

import grpc.aio

from regiongate.cli.failures import CommandFailed, error_from_call
from regiongate.v1 import policy_service_pb2 as pb
from regiongate.v1.policy_service_pb2_grpc import PolicyServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from regiongate.v1.policy_service_pb2_grpc import PolicyServiceAsyncStub

_CALL_SECONDS = 10.0
_APPLY_SECONDS = 45.0
_SILENCE_SECONDS = 60.0


class GatewayCalls:
    """A connection to the first gateway that answers; `async with` closes it."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._channel = grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}")
        self._stub = cast("PolicyServiceAsyncStub", PolicyServiceStub(self._channel))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def current_document(self) -> str | None:
        """The document that is current; None when none was ever applied."""
        try:
            answer = await self._stub.GetPolicy(pb.GetPolicyRequest(), timeout=_CALL_SECONDS, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if (known := error_from_call(error)) and known.reason in ("NO_POLICY", "REVISION_NOT_FOUND"):
                return None
            raise
        return answer.policy.document

    async def has_policy(self) -> bool:
        """Whether a policy has been applied."""
        return await self.current_document() is not None

    async def apply(self, document: str, file: str, tell: Callable[[str], None], *, can_wait: bool = True) -> None:
        """Applies the document unless it is current already; returns when its shards are served, if one can wait."""
        if await self.current_document() == document:
            tell(f"{file} is current already")
            return
        request = pb.ApplyPolicyRequest(
            document=document, file=file, author=getpass.getuser(), message=f"regiongate up --policy {file}"
        )
        answer = await self._stub.ApplyPolicy(request, timeout=_APPLY_SECONDS)
        tell(f"{file} is effective as revision {answer.revision}")
        if answer.rollout and can_wait:
            await self._follow(answer.rollout, tell)

    async def _follow(self, rollout: str, tell: Callable[[str], None]) -> None:
        """Waits for the end of a rollout, for as long as something is heard of it."""
        note = ""
        answers = aiter(self._stub.WatchRollout(pb.WatchRolloutRequest(rollout=rollout)))
        try:
            while True:
                told = (await asyncio.wait_for(anext(answers), _SILENCE_SECONDS)).rollout
                note = told.note
                if told.state == "done":
                    tell(f"{told.shards_total} shards are where they are to be")
                    return
                if told.end_time.seconds:
                    tell(f"rollout {rollout} is {told.state}: {note}")
                    return
        except (TimeoutError, StopAsyncIteration):
            hint = note or "see the controller's log"
            raise CommandFailed("ROLLOUT_UNFINISHED", f"rollout {rollout} has not ended", hint) from None
