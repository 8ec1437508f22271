"""The SDK for scripts without an event loop: the same calls, each waiting for its answer.

A thread of its own runs the loop. The client may be used from many threads at once, and then packs their calls together
like those of tasks. The methods are `regiongate.Client`'s, with the same arguments and errors.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import uvloop

from gateway.client import Client
from gateway.client import connect as connect_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from typing import Concatenate

    from gateway.client import DatasetColumns, ShardOwner

__all__ = ["BlockingClient", "connect"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="regiongate-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine on the loop and waits for its result; an interrupted wait cancels it."""
        if not self._thread.is_alive():
            coroutine.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()


class _Waiting(Generic[_P, _T]):
    """A coroutine method of `Client` as a method that waits."""

    def __init__(self, method: Callable[Concatenate[Client, _P], Coroutine[Any, Any, _T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, front: BlockingClient, _owner: object = None) -> Callable[_P, _T]:
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            return front.run(self._method(front.client, *args, **kwargs))

        return call


class _Iterating(Generic[_P, _T]):
    """An async iterator method of `Client` as an iterator that waits for each item."""

    def __init__(self, method: Callable[Concatenate[Client, _P], AsyncIterator[_T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, front: BlockingClient, _owner: object = None) -> Callable[_P, Iterator[_T]]:
        def iterate(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
            items = self._method(front.client, *args, **kwargs)

            async def step() -> tuple[_T] | None:
                # A StopAsyncIteration cannot leave a coroutine.
                async for item in items:
                    return (item,)
                return None

            while (item := front.run(step())) is not None:
                yield item[0]

        return iterate


class BlockingClient:
    """`Client` for code that waits. Made by `connect`."""

    get = _Waiting(Client.get)
    put = _Waiting(Client.put)
    delete = _Waiting(Client.delete)
    move = _Waiting(Client.move)
    batch_get = _Waiting(Client.batch_get)
    batch_write = _Waiting(Client.batch_write)
    list_page = _Waiting(Client.list_page)
    list = _Iterating(Client.list)

    def __init__(self, client: Client, loop: _Loop) -> None:
        self.client = client
        self._loop = loop

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine that uses `client`, and waits for its result."""
        return self._loop.run(coroutine)

    def owner_of(self, region_code: str, key: str | int) -> ShardOwner:
        """See `Client.owner_of`."""
        return self.client.owner_of(region_code, key)

    def owns(self, region_code: str, key: str | int) -> bool:
        """See `Client.owns`."""
        return self.client.owns(region_code, key)

    @property
    def home_idc(self) -> str:
        """See `Client.home_idc`."""
        return self.client.home_idc

    @property
    def datasets(self) -> Mapping[str, DatasetColumns]:
        """See `Client.datasets`."""
        return self.client.datasets


def _blocking(
    connect: Callable[_P, AbstractAsyncContextManager[Client]],
) -> Callable[_P, Generator[BlockingClient]]:
    def opened(*args: _P.args, **kwargs: _P.kwargs) -> Generator[BlockingClient]:
        loop = _Loop()
        try:
            connection = connect(*args, **kwargs)
            client = loop.run(_enter(connection))
            try:
                yield BlockingClient(client, loop)
            finally:
                loop.run(_leave(connection))
        finally:
            loop.stop()

    return opened


async def _enter(connection: AbstractAsyncContextManager[Client]) -> Client:
    return await connection.__aenter__()


async def _leave(connection: AbstractAsyncContextManager[Client]) -> None:
    await connection.__aexit__(None, None, None)


connect = contextmanager(_blocking(connect_async))
"""`with regiongate.blocking.connect("host:port") as client`; arguments as for `regiongate.connect`."""
