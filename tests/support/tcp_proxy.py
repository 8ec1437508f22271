"""A TCP proxy that breaks connections in the ways that networks do.

`cut` ends all connections and refuses new ones until `heal`; `pause` keeps connections open and carries nothing until
`resume` (a machine that is stopped, a network that swallows packets); `delay` holds each piece back for some seconds.
It runs in the event loop of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from tests.support.ports import free_port

_PIECE_BYTES = 64 * 1024


class TcpProxy:
    """Listens on a port of its own and carries bytes to and from a target."""

    def __init__(self, target_port: int, target_host: str = "127.0.0.1", port: int | None = None) -> None:
        self.port = port or free_port()
        self.delay = 0.0
        """Seconds that each piece waits, in each direction."""
        self.connections = 0
        """Connections accepted since the start."""
        self._target = (target_host, target_port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._has_answers = True
        self._connected = asyncio.Condition()

    @property
    def address(self) -> str:
        """Where clients connect instead of the target."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.heal()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def heal(self) -> None:
        """Accepts connections again after a cut."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Ends all connections by a reset, and refuses new ones."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self.cut_connections()

    async def cut_connections(self) -> None:
        """Ends all connections by a reset; new ones are welcome."""
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def pause(self) -> None:
        """Carries nothing from now on; connections stay open, and new ones are accepted."""
        self._flowing.clear()

    def swallow_answers(self) -> None:
        """Carries on to the target, and throws away what comes back, until `resume`.

        The connections are broken after that: end them by `cut_connections`.
        """
        self._has_answers = False

    def resume(self) -> None:
        """Carries again, also what has waited."""
        self._has_answers = True
        self._flowing.set()

    async def wait_for_connections(self, count: int, timeout: float = 10.0) -> None:
        """Waits until `count` connections have been accepted since the start."""
        async with asyncio.timeout(timeout), self._connected:
            await self._connected.wait_for(lambda: self.connections >= count)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        async with self._connected:
            self.connections += 1
            self._connected.notify_all()
        target: asyncio.StreamWriter | None = None
        try:
            target_reader, target = await asyncio.open_connection(*self._target)
            self._writers.add(target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, target, is_answer=False))
                group.create_task(self._carry(target_reader, writer, is_answer=True))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # one side is gone; the test sees it at the other
        finally:
            for end in (writer, target):
                if end is not None:
                    end.transport.abort()
                    self._writers.discard(end)
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            await self._flowing.wait()
            if is_answer and not self._has_answers:
                continue
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
