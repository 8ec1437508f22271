"""Jobs of every IDC: this one is asked directly, one gateway of each other one by a call that goes no further.

An IDC that cannot be asked is named, not waited for beyond a share of the call's time. One that never ran the job is
left out; only when none has run it the caller is told so. A refusal of what was asked ends the whole call: it would be
the same elsewhere.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import structlog

from gateway.peer_calls import hop_metadata, told_as_ours
from gateway.requests import table_of
from policy.errors import (
    DeadlineExceeded,
    InvalidInput,
    PeerUnreachable,
    RegiongateError,
    Unavailable,
    UnknownIdc,
    UnknownJob,
)
from policy.wording import join
from regiongate.v1.job_service_pb2_grpc import JobServiceStub

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.hold import FollowerLike
    from gateway.operations import CallContext
    from gateway.peers import Peers

log = structlog.get_logger("regiongate.gateway.jobs")

_PATIENCE: Final = 0.6
"""Share of a call's remaining time that one IDC may take before it counts as unreachable."""
_ATTEMPTS: Final = 2
"""How often an IDC is asked what may be repeated: its next gateway may be well."""

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Question(Generic[_Request, _Answer]):
    """One method of `JobService`, to be asked in several IDCs."""

    method: str
    request: _Request
    here: Callable[[_Request], Awaitable[_Answer]]
    """Answers for this IDC."""
    is_repeatable: bool = True
    """Whether it may be asked again when nobody knows what became of it."""


@dataclass(frozen=True, slots=True)
class Answers(Generic[_Answer]):
    """What the IDCs have said."""

    found: dict[str, _Answer]
    """IDC -> its answer, in the order of the names."""
    unreachable: tuple[str, ...]
    """IDCs that could not be asked, in the order of the names."""


class JobPeers:
    """Asks the gateways of all IDCs."""

    def __init__(self, idc: str, view: FollowerLike, peers: Peers) -> None:
        self._idc = idc
        self._view = view
        self._peers = peers

    def choose(self, asked: Sequence[str]) -> tuple[str, ...]:
        """IDCs that a request means, all of the policy for none; raises `UnknownIdc` or `NoPolicy`."""
        known = table_of(self._view).policy.idcs
        if not set(asked) <= set(known):
            raise UnknownIdc(f"the policy has no such IDC; it has {join(known)}", field_name="idcs")
        return tuple(sorted(set(asked) or known))

    async def ask(
        self, idcs: Sequence[str], question: Question[_Request, _Answer], context: CallContext
    ) -> Answers[_Answer]:
        """Asks all at once.

        Raises:
            UnknownJob: none of them has ever run the job.
            InvalidInput: one of them refuses what was asked.
            RegiongateError: none of them could be asked; the error of the first.
        """
        now = asyncio.get_running_loop().time()
        until = now + (context.deadline - now) * _PATIENCE
        told = await asyncio.gather(*(self._ask(idc, question, context, until) for idc in idcs))
        found: dict[str, _Answer] = {}
        failed: dict[str, RegiongateError] = {}
        for idc, answer in zip(idcs, told, strict=True):
            if isinstance(answer, UnknownJob):
                continue
            if isinstance(answer, RegiongateError):
                failed[idc] = answer
            else:
                found[idc] = answer
        if not found:
            raise next(iter(failed.values()), UnknownJob(f"no job of this name was ever run in {join(idcs)}"))
        return Answers(found, tuple(failed))

    async def _ask(
        self, idc: str, question: Question[_Request, _Answer], context: CallContext, until: float
    ) -> _Answer | RegiongateError:
        """One IDC's answer, or why there is none; raises what ends the whole call."""
        try:
            async with asyncio.timeout_at(until):
                if idc == self._idc:
                    return await question.here(question.request)
                return await self._call(idc, question, context, until)
        except InvalidInput:
            raise
        except TimeoutError:
            error: RegiongateError = DeadlineExceeded(f"{idc} did not answer in time")
        except RegiongateError as caught:
            error = caught
        if not isinstance(error, UnknownJob):
            log.warning("cannot ask about jobs", method=question.method, asked_idc=idc, reason=error.reason)
        return error

    async def _call(
        self, idc: str, question: Question[_Request, _Answer], context: CallContext, until: float
    ) -> _Answer:
        now = asyncio.get_running_loop().time
        for attempt in range(1, _ATTEMPTS + 1):
            call: Any = getattr(JobServiceStub(self._peers.channel(idc)), question.method)
            timeout = max(0.001, until - now())
            try:
                with told_as_ours(idc):
                    return await call(question.request, metadata=hop_metadata(self._idc, context), timeout=timeout)
            except Unavailable:
                if attempt == _ATTEMPTS or not question.is_repeatable:
                    raise
        raise PeerUnreachable(f"no gateway of {idc} answers")
