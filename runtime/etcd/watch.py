"""One watch on a prefix, kept up over many streams.

`_next` is the first revision that has not been delivered. It moves with delivered events, and with the member's own
progress notes, never with notes that were asked for (they can overtake events before etcd 3.4.25 and 3.5.8). A stream
that ends, falls silent or has no leader behind it is replaced by one at the next member, opened from `_next`: nothing
is missed and nothing comes twice. History that is gone, and a refusal that would be repeated, are raised.
"""

from __future__ import annotations

import asyncio
import time

from runtime.etcd.errors import (
    STALE_TOKEN,
    EtcdCompacted,
    EtcdDeadline,
    EtcdDenied,
    EtcdError,
    EtcdUnavailable,
    EtcdWatchCancelled,
    has_stale_token,
)
from runtime.etcd.methods import WATCH
from runtime.etcd.pb import rpc_pb2 as pb
from runtime.etcd.transport import Stream, Transport, back_off
from runtime.etcd.types import Event, WatchBatch, event_of, range_end

_PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
_TRANSIENT_REASONS = ("no leader", "watch canceled", "leader changed")
_TOKEN_REASONS = (*STALE_TOKEN, "permission denied")
"""Before 3.5.5 an expired token is reported to a watch as a missing permission."""

_MAX_PATIENCE = 16


class Watcher:
    """A watch that outlives its streams."""

    def __init__(self, transport: Transport, prefix: str, start_revision: int) -> None:
        if start_revision < 1:
            raise ValueError("a watch starts at a revision, so that it is known what it has missed")
        self._transport = transport
        self._prefix = prefix
        self._next = start_revision
        self._stream: Stream[pb.WatchRequest, pb.WatchResponse] | None = None
        self._watch_id = 0
        self._parts: list[Event] = []
        self._failures = 0
        self._patience = 1
        self._is_asking = False
        self._quiet_since = 0.0
        self._check_every = transport.settings.watch_check_every.total_seconds()
        self._token = ""
        self._may_renew_token = bool(transport.settings.username)

    async def next(self, timeout: float | None = None) -> WatchBatch | None:
        """The next changes, or None when there are none within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                stream = self._stream or await self._open()
                batch = await self._receive(stream, deadline)
            except EtcdUnavailable as error:
                await self._reopen_later(error, deadline)
                batch = None
            except EtcdDenied as error:
                if not (self._may_renew_token and has_stale_token(error)):
                    raise
                self._renew_token()
                await self._reopen_later(error, deadline)
                batch = None
            if batch is not None or (deadline is not None and time.monotonic() >= deadline):
                return batch

    async def close(self) -> None:
        """Ends the watch at the server."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _open(self) -> Stream[pb.WatchRequest, pb.WatchResponse]:
        self._parts.clear()
        self._is_asking = False
        stream = self._stream = await self._transport.open(WATCH)
        self._token = self._transport.token
        create = pb.WatchCreateRequest(
            key=self._prefix.encode() or b"\0",
            range_end=range_end(self._prefix),
            start_revision=self._next,
            progress_notify=True,
            prev_kv=True,
            fragment=True,
        )
        patience = self._transport.settings.attempt_timeout.total_seconds()
        await stream.send(pb.WatchRequest(create_request=create), patience)
        response = await stream.receive(patience)
        if response is None:
            raise EtcdDeadline(f"etcd at {stream.address}: no watch within {patience:.1f} s")
        if response.canceled:
            self._raise_cancelled(response)
        self._watch_id = response.watch_id
        self._quiet_since = time.monotonic()
        self._may_renew_token = bool(self._transport.settings.username)
        return stream

    async def _receive(
        self, stream: Stream[pb.WatchRequest, pb.WatchResponse], deadline: float | None
    ) -> WatchBatch | None:
        """Waits for one message, for the deadline or for a silence that is too long, whichever comes first."""
        silence = self._check_every * (self._patience if self._is_asking else 1)
        too_late = self._quiet_since + silence
        until = too_late if deadline is None else min(too_late, deadline)
        response = await stream.receive(until - time.monotonic())
        if response is not None:
            self._quiet_since = time.monotonic()
            self._failures = 0
            self._is_asking = False
            return self._take(response)
        if until < too_late:
            return None
        if self._is_asking:
            # A member that is still reading old history for us may not answer either: wait longer each time.
            self._patience = min(self._patience * 2, _MAX_PATIENCE)
            raise EtcdDeadline(f"etcd at {stream.address}: a watch has been silent for too long")
        self._is_asking = True
        self._quiet_since = time.monotonic()
        await stream.send(_PROGRESS, silence)
        return None

    def _take(self, response: pb.WatchResponse) -> WatchBatch | None:
        if response.canceled:
            self._raise_cancelled(response)
        if response.watch_id != self._watch_id:
            return None  # the answer to our asking: a sign of life, and no more
        self._patience = 1
        self._parts.extend(map(event_of, response.events))
        if response.fragment:
            return None
        if not self._parts:
            self._next = max(self._next, response.header.revision + 1)
            return None
        events, self._parts = tuple(self._parts), []
        revision = events[-1].item.mod_revision
        self._next = revision + 1
        return WatchBatch(revision, events)

    def _raise_cancelled(self, response: pb.WatchResponse) -> None:
        reason = response.cancel_reason
        if response.compact_revision:
            raise EtcdCompacted(response.compact_revision)
        if any(text in reason for text in _TRANSIENT_REASONS):
            raise EtcdUnavailable(f"etcd ended a watch: {reason}")
        if self._may_renew_token and any(text in reason for text in _TOKEN_REASONS):
            self._renew_token()
            raise EtcdUnavailable(f"etcd ended a watch, its token may have expired: {reason}")
        raise EtcdWatchCancelled(reason)

    def _renew_token(self) -> None:
        """Once for each time that a watch stood: a new token that is refused as well means what it says."""
        self._may_renew_token = False
        self._transport.forget_token(self._token)

    async def _reopen_later(self, error: EtcdError, deadline: float | None) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.fail(error)
            await stream.close()
        delay = back_off(self._failures)
        self._failures += 1
        await asyncio.sleep(delay if deadline is None else max(0.0, min(delay, deadline - time.monotonic())))
