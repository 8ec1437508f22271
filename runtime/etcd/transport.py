"""Calls to a cluster: attempts over its members, a token when there is a user, streams.

A call is attempts: each has a short deadline, a failed one makes the next member the preferred one. Whether a call may
be attempted again after one that may have taken effect is the caller's to say: reads may, writes only where doing
them twice is the same as doing them once.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import grpc.aio
import structlog

from runtime.etcd import methods
from runtime.etcd.endpoints import Endpoints
from runtime.etcd.errors import (
    EtcdDeadline,
    EtcdDenied,
    EtcdError,
    EtcdRejected,
    EtcdUnavailable,
    has_stale_token,
    translate,
)
from runtime.etcd.methods import Method, Req, Res
from runtime.etcd.pb import rpc_pb2 as pb

if TYPE_CHECKING:
    from runtime.etcd.types import EtcdSettings

log = structlog.get_logger(__name__)

_FIRST_DELAY_SECONDS = 0.02
_LAST_DELAY_SECONDS = 1.0


def back_off(attempt: int) -> float:
    """Seconds to wait after the `attempt`-th failure in a row (from 0): doubling, capped, half of it random."""
    delay = min(_LAST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** min(attempt, 16))
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 (jitter, not a secret)


@dataclass(frozen=True, slots=True)
class Answer(Generic[Res]):
    """The response of a call."""

    response: Res
    is_repeat: bool
    """An earlier attempt may have taken effect, too."""


class Transport:
    """Everything between the client's methods and the wire."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.settings = settings
        self.is_connected = False
        self.last_contact = float("-inf")
        self.endpoints = Endpoints(settings)
        self._token = ""
        self._authenticating = asyncio.Lock()
        self._has_authenticated = not settings.username
        self._cluster_id = 0
        self._is_closed = False

    async def close(self) -> None:
        """Ends all calls and connections."""
        self._is_closed = True
        await self.endpoints.close()

    async def call(
        self, method: Method[Req, Res], request: Req, *, may_repeat: bool = True, again: Req | None = None
    ) -> Answer[Res]:
        """Calls until a member answers, the request's time is over, or repeating is not allowed.

        `again` is sent instead of `request` once an earlier attempt may have taken effect.
        """
        deadline = time.monotonic() + self.settings.request_timeout.total_seconds()
        is_repeat, failures = False, 0
        while True:
            timeout = min(self.settings.attempt_timeout.total_seconds(), deadline - time.monotonic())
            message = again if is_repeat and again is not None else request
            try:
                return Answer(await self.attempt(method, message, timeout), is_repeat)
            except EtcdUnavailable as error:
                is_repeat = is_repeat or error.may_have_applied
                # The first round over the members goes without waiting.
                delay = back_off(failures - len(self.endpoints) + 1) if failures >= len(self.endpoints) - 1 else 0.0
                failures += 1
                out_of_time = time.monotonic() + delay >= deadline
                if self._is_closed or out_of_time or (error.may_have_applied and not may_repeat):
                    error.may_have_applied = is_repeat
                    raise
            await asyncio.sleep(delay)

    async def attempt(self, method: Method[Req, Res], request: Req, timeout: float) -> Res:
        """One attempt at the preferred member; a failure makes the next one preferred."""
        index, token = self.endpoints.preferred, self._token
        try:
            try:
                response = await self._send(index, method, request, timeout)
            except EtcdDenied as error:
                if not self.settings.username or not has_stale_token(error):
                    raise
                self.forget_token(token)
                response = await self._send(index, method, request, timeout)
        except EtcdUnavailable as error:
            self.fail(index, error)
            raise
        self._note(index, response)
        return response

    async def open(self, method: Method[Req, Res]) -> Stream[Req, Res]:
        """Opens a stream at the preferred member; nothing is known of it until it answers."""
        if self._is_closed:
            raise EtcdRejected("the etcd client is closed")
        index = self.endpoints.preferred
        try:
            metadata = await self._metadata(index, method, self.settings.attempt_timeout.total_seconds())
        except EtcdUnavailable as error:
            self.fail(index, error)
            raise
        call = self.endpoints.callable(index, method)(metadata=metadata)
        return Stream(self, call, index, self.endpoints.address(index))

    def fail(self, index: int, error: EtcdError) -> None:
        """Takes note that a member failed."""
        self.endpoints.fail(index)
        if self.is_connected:
            log.warning("etcd unreachable", error=str(error))
        self.is_connected = False

    def note_contact(self, index: int) -> None:
        """Takes note that a member answered."""
        if not self.is_connected and self.last_contact > float("-inf"):
            log.info("etcd reachable again", endpoint=self.endpoints.address(index))
        self.last_contact = time.monotonic()
        self.is_connected = True

    @property
    def token(self) -> str:
        """The token that calls carry now; empty without a user."""
        return self._token

    def forget_token(self, token: str) -> None:
        """Authenticates anew before the next call, unless another caller has already done so since `token`."""
        if token == self._token:
            self._token = ""
            self._has_authenticated = not self.settings.username

    async def _send(self, index: int, method: Method[Req, Res], request: Req, timeout: float) -> Res:
        if self._is_closed:
            raise EtcdRejected("the etcd client is closed")
        metadata = await self._metadata(index, method, timeout)
        if method.is_stream:
            call = self.endpoints.callable(index, method)(metadata=metadata)
            return await self._send_once(
                Stream[Req, Res](self, call, index, self.endpoints.address(index)), request, timeout
            )
        return await self._send_unary(index, method, request, timeout, metadata)

    async def _send_unary(
        self, index: int, method: Method[Req, Res], request: Req, timeout: float, metadata: tuple[tuple[str, str], ...]
    ) -> Res:
        try:
            return await self.endpoints.callable(index, method)(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise translate(error.code(), error.details() or "", self.endpoints.address(index)) from None

    @staticmethod
    async def _send_once(stream: Stream[Req, Res], request: Req, timeout: float) -> Res:
        deadline = time.monotonic() + timeout
        try:
            await stream.send(request, timeout)
            response = await stream.receive(deadline - time.monotonic())
        finally:
            await stream.close()
        if response is None:
            raise EtcdDeadline(f"etcd at {stream.address}: no answer within {timeout:.1f} s")
        return response

    async def _metadata(self, index: int, method: Method[Any, Any], timeout: float) -> tuple[tuple[str, str], ...]:
        if not self._has_authenticated:
            await self._authenticate(index, timeout)
        # Without a leader a member would let watches and writes hang; with this it ends them.
        leader = (("hasleader", "true"),) if method.needs_leader else ()
        return (*leader, ("token", self._token)) if self._token else leader

    async def _authenticate(self, index: int, timeout: float) -> None:
        async with self._authenticating:
            if self._has_authenticated:
                return
            request = pb.AuthenticateRequest(name=self.settings.username, password=self.settings.plain_password)
            try:
                response = await self._send_unary(index, methods.AUTHENTICATE, request, timeout, ())
            except EtcdRejected as error:
                if "authentication is not enabled" not in str(error):
                    raise
                # As etcd's own client does: a user may be configured before the cluster demands one.
                self._token = ""
            else:
                self._token = response.token
            self._has_authenticated = True

    def _note(self, index: int, response: Any) -> None:  # noqa: ANN401 (each response type has a header)
        cluster_id: int = response.header.cluster_id
        if self._cluster_id == 0:
            self._cluster_id = cluster_id
        elif cluster_id not in {0, self._cluster_id}:
            # Revisions of two clusters cannot be compared: following one after the other would be following a lie.
            raise EtcdRejected(f"etcd at {self.endpoints.address(index)} belongs to another cluster")
        self.note_contact(index)


class Stream(Generic[Req, Res]):
    """A bidirectional call whose reads can time out without being lost."""

    def __init__(self, transport: Transport, call: Any, index: int, address: str) -> None:  # noqa: ANN401 (grpc's own)
        self.address = address
        self._transport = transport
        self._call = call
        self._index = index
        self._reading: asyncio.Task[Any] | None = None

    async def send(self, request: Req, timeout: float) -> None:
        """Sends a message; raises EtcdDeadline when it cannot be handed over in time."""
        try:
            async with asyncio.timeout(timeout):
                await self._call.write(request)
        except TimeoutError:
            raise EtcdDeadline(f"etcd at {self.address}: nothing sent within {timeout:.1f} s") from None
        except asyncio.InvalidStateError:
            raise EtcdUnavailable(f"etcd at {self.address}: the stream has ended") from None
        except grpc.aio.AioRpcError as error:
            raise translate(error.code(), error.details() or "", self.address) from None

    async def receive(self, timeout: float) -> Res | None:
        """The next message, or None when there is none yet: the read goes on, and the next call picks it up."""
        task = self._reading
        if task is None:
            task = self._reading = asyncio.ensure_future(self._call.read())
        done, _ = await asyncio.wait({task}, timeout=max(timeout, 0))
        if not done:
            return None
        self._reading = None
        if task.cancelled():
            raise EtcdUnavailable(f"etcd at {self.address}: the stream was cancelled")
        try:
            message = task.result()
        except grpc.aio.AioRpcError as error:
            raise translate(error.code(), error.details() or "", self.address) from None
        if message is grpc.aio.EOF:
            raise EtcdUnavailable(f"etcd at {self.address}: the stream has ended")
        self._transport.note_contact(self._index)
        return message

    def fail(self, error: EtcdError) -> None:
        """Takes note that this stream's member failed."""
        self._transport.fail(self._index, error)

    async def close(self) -> None:
        """Ends the call; the server forgets what belonged to it."""
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
