"""Follows the home gateway's `WatchRoutes`, for as long as the client lives.

A snapshot, then changes; when the stream ends, the next gateway of the home IDC or the target is asked, which begins
with a snapshot again. Subscribers get every change in order; one that is too slow gets a new snapshot instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from random import uniform
from typing import TYPE_CHECKING, Final

import grpc.aio

from gateway.client.failures import Failed, failed_call, unreachable
from policy.errors import NoPolicy, PeerUnreachable, RegiongateError, Unavailable
from regiongate.v1 import routing_service_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.client.connections import Connections
    from gateway.client.endpoint import Endpoint
    from gateway.client.model import RouteChange
    from gateway.client.routes import Routes

_FIRST_PAUSE: Final = 0.05
_MAX_PAUSE: Final = 2.0
_FIRST_MESSAGE_TIMEOUT: Final = 3.0
"""Seconds: a gateway that tells nothing for so long after being asked is passed over."""
_MAX_CHANGES: Final = 64
"""Changes kept for a subscriber that is busy."""


class Follower:
    """Keeps `Routes` up to date."""

    def __init__(self, routes: Routes, connections: Connections) -> None:
        self._routes = routes
        self._connections = connections
        self._subscribers: set[_Subscriber] = set()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_failure = Failed(PeerUnreachable("no gateway of the target has answered"))
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait_first(self, timeout: float) -> None:
        """Waits for the first snapshot, or for a gateway to say that there is no policy yet.

        Raises:
            RegiongateError: Why no gateway of the target answers.
        """
        try:
            await asyncio.wait_for(asyncio.shield(self._first), timeout)
        except TimeoutError:
            raise self._last_failure.error from None
        except Failed as failed:
            raise failed.error from None

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            for address in self._connections.home_candidates():
                endpoint = self._connections.endpoint(address)
                if await self._follow(endpoint):
                    pause = _FIRST_PAUSE
                    break
            await asyncio.sleep(uniform(pause / 2, pause))  # noqa: S311 (spreading, not secrecy)
            pause = min(pause * 2, _MAX_PAUSE)

    async def _follow(self, endpoint: Endpoint) -> bool:
        """Reads one stream to its end; returns whether it told anything."""
        told = False
        stream = endpoint.routing.WatchRoutes(routing_service_pb2.WatchRoutesRequest())
        try:
            while True:
                news = await asyncio.wait_for(stream.read(), None if told else _FIRST_MESSAGE_TIMEOUT)
                if not isinstance(news, routing_service_pb2.WatchRoutesResponse):
                    break
                told = True
                self._take(news, endpoint)
        except grpc.aio.AioRpcError as error:
            self._note(failed_call(error, endpoint.address))
        except asyncio.CancelledError:
            # Cancelled from below, as a channel's closing does, the stream has ended; otherwise this task has.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        except TimeoutError:
            self._note(unreachable(endpoint.address, "no answer in time"))
        finally:
            stream.cancel()
        if not told:
            endpoint.fail()
        return told

    def _take(self, news: routing_service_pb2.WatchRoutesResponse, endpoint: Endpoint) -> None:
        self._routes.home_address = endpoint.address
        change = self._routes.apply(news)
        endpoint.succeed()
        self._connections.adapt()
        if not self._first.done():
            self._first.set_result(None)
        for subscriber in self._subscribers:
            subscriber.put(change)

    def _note(self, failed: Failed) -> None:
        self._last_failure = failed
        if self._first.done():
            return
        if isinstance(failed.error, NoPolicy):
            # The gateway is there; calls will say the same until a policy has been applied.
            self._first.set_result(None)
        elif not isinstance(failed.error, Unavailable):
            self._first.set_exception(failed)

    async def changes(self) -> AsyncIterator[RouteChange]:
        """All that is known, then every change."""
        subscriber = _Subscriber(self._routes)
        self._subscribers.add(subscriber)
        try:
            while True:
                yield await subscriber.get()
        finally:
            self._subscribers.discard(subscriber)

    async def close(self) -> None:
        """Stops following; subscribers are told by `RegiongateError`."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._first.done():
            self._first.exception()
        for subscriber in self._subscribers:
            subscriber.end()


class _Subscriber:
    """A bounded queue of changes: when it is full, its content is replaced by one snapshot."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._changes: deque[RouteChange] = deque()
        self._needs_snapshot = True
        self._has_ended = False
        self._news = asyncio.Event()
        self._news.set()

    def put(self, change: RouteChange) -> None:
        if self._needs_snapshot:
            return
        self._changes.append(change)
        if len(self._changes) > _MAX_CHANGES:
            self._changes.clear()
            self._needs_snapshot = True
        self._news.set()

    def end(self) -> None:
        self._has_ended = True
        self._news.set()

    async def get(self) -> RouteChange:
        await self._news.wait()
        if self._has_ended:
            raise RegiongateError("the client is closed")
        if self._needs_snapshot:
            self._needs_snapshot = False
            self._news.clear()
            return self._routes.snapshot()
        change = self._changes.popleft()
        if not self._changes:
            self._news.clear()
        return change
