"""The client: reads, writes and transactions on a cluster of etcd members, and the way to watch it.

Reads are linearizable. Every call ends within `request_timeout`, in a result or in an error of `runtime.etcd.errors`;
`EtcdUnavailable.may_have_applied` says whether a failed write may still have taken effect.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Self

import structlog

from runtime.etcd import methods, txn
from runtime.etcd.errors import EtcdCompacted, EtcdTooLarge, EtcdUnavailable
from runtime.etcd.follow import follow
from runtime.etcd.pb import rpc_pb2 as pb
from runtime.etcd.transport import Transport
from runtime.etcd.types import (
    Compare,
    EtcdSettings,
    FollowBatch,
    KeyValue,
    Listing,
    MemberStatus,
    Op,
    TxnResult,
    WatchBatch,
    get_op,
    item_of,
    range_end,
)
from runtime.etcd.watch import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from types import TracebackType

log = structlog.get_logger(__name__)

_CORRUPTING_VERSIONS = re.compile(r"3\.5\.[012]$")
_LIST_ROUNDS = 5


class EtcdClient:
    """A connection to one etcd cluster; use it as an async context manager, in one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.transport = Transport(settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all calls, watches and connections."""
        await self.transport.close()

    @property
    def is_connected(self) -> bool:
        """Whether the last thing heard from etcd was an answer, not a failure."""
        return self.transport.is_connected

    @property
    def last_contact(self) -> float:
        """When a member last answered, in `time.monotonic()` seconds; minus infinity before the first answer."""
        return self.transport.last_contact

    async def get(self, key: str) -> KeyValue | None:
        """The key as it is now, or None."""
        return (await self.get_at(key))[0]

    async def get_at(self, key: str) -> tuple[KeyValue | None, int]:
        """The key as it is now, or None, and the revision at which that is so."""
        response = (await self.transport.call(methods.RANGE, pb.RangeRequest(key=key.encode()))).response
        return (item_of(response.kvs[0]) if response.kvs else None), response.header.revision

    async def list(self, prefix: str, *, page_size: int = 1000, revision: int = 0) -> Listing:
        """Everything under a prefix, at one revision however many pages it takes: the newest, or a given one.

        Raises EtcdCompacted when the given revision is gone.
        """
        for _ in range(_LIST_ROUNDS):
            try:
                return await self._list_pages(prefix, page_size, revision)
            except EtcdCompacted:
                if revision:
                    raise
                continue  # gone between two pages: start over at a newer one
            except EtcdTooLarge:
                if page_size == 1:
                    raise
                page_size = max(1, page_size // 8)
        raise EtcdUnavailable(f"etcd compacts faster than {prefix} can be listed", may_have_applied=False)

    async def _list_pages(self, prefix: str, page_size: int, revision: int) -> Listing:
        items: list[KeyValue] = []
        first = prefix.encode() or b"\0"
        request = pb.RangeRequest(key=first, range_end=range_end(prefix), limit=page_size, revision=revision)
        while True:
            response = (await self.transport.call(methods.RANGE, request)).response
            items.extend(map(item_of, response.kvs))
            request.revision = request.revision or response.header.revision
            if not response.more or not response.kvs:
                return Listing(tuple(items), request.revision)
            request.key = response.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Writes a key and returns the revision.

        It is repeated when an answer is lost, so it may be applied twice, the second time late: fit for keys with one
        writer. Where others write too, use `transact` with a compare.
        """
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease)
        return (await self.transport.call(methods.PUT, request)).response.header.revision

    async def delete(self, key: str) -> int:
        """Deletes a key, if it is there, and returns the revision; repeated like `put`."""
        request = pb.DeleteRangeRequest(key=key.encode())
        return (await self.transport.call(methods.DELETE_RANGE, request)).response.header.revision

    async def transact(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """Runs `success` if all compares hold, else `failure`, atomically.

        A transaction is repeated after a lost answer when that cannot apply it twice: when it only reads, or when one
        compare (mod revision = n, or create revision = 0) is on a key that `success` writes, and `failure` only reads.
        For a repeat that finds its compare broken, "was it us?" is answered by that key's value and lease: put
        something unique to the writer there. Any other transaction is sent once; when its answer is lost, and when
        the question cannot be answered, EtcdUnavailable says so by `may_have_applied`.

        Raises EtcdTooLarge, before sending, above 128 operations.
        """
        request = txn.to_request(compares, success, failure)
        guard = txn.find_guard(compares, success, failure)
        if guard is None or len(failure) >= txn.MAX_OPERATIONS:
            may_repeat = txn.is_read_only(success, failure)
            return txn.to_result((await self.transport.call(methods.TXN, request, may_repeat=may_repeat)).response)
        again = txn.to_request(compares, success, (*failure, get_op(guard[0].key)))
        answer = await self.transport.call(methods.TXN, request, again=again)
        result = txn.to_result(answer.response)
        if result.succeeded or not answer.is_repeat:
            return result
        return txn.judge_repeat(guard, success, result)

    async def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[WatchBatch]:
        """Every change under a prefix from a revision on, each once, through cuts and member failures, without end.

        Raises EtcdCompacted when the history is gone, EtcdWatchCancelled when the server will not have it. Leave it
        through `contextlib.aclosing`, so that the server forgets it at once.
        """
        watcher = Watcher(self.transport, prefix, start_revision)
        try:
            while True:
                batch = await watcher.next()
                if batch is not None:
                    yield batch
        finally:
            await watcher.close()

    def follow(
        self, prefix: str, *, sections: Sequence[str] = (), relist_every: timedelta = timedelta(minutes=5)
    ) -> AsyncGenerator[FollowBatch]:
        """The state under a prefix and then its changes, without end: a snapshot first, and whenever history is lost.

        With `sections`, prefixes below `prefix`, snapshots list these only, all at one revision; changes are those of
        the whole prefix. So one order of revisions covers them all, and what is not needed is not listed.

        Every `relist_every` it is listed again and compared, since some servers lose events; a difference that the
        watch does not explain gives a new snapshot. Raises EtcdDenied and EtcdWatchCancelled.
        """
        return follow(self, prefix, tuple(sections) or (prefix,), relist_every)

    async def status(self) -> MemberStatus:
        """What the preferred member says of itself; warns of releases that are known to lose data."""
        status = await self.member_status()
        if _CORRUPTING_VERSIONS.match(status.version):
            log.warning("this etcd release can corrupt data when killed under load", version=status.version)
        return status

    async def member_status(self) -> MemberStatus:
        """Like `status`, without the warning."""
        response = (await self.transport.call(methods.STATUS, pb.StatusRequest())).response
        return MemberStatus(
            version=response.version,
            member_id=response.header.member_id,
            leader=response.leader,
            raft_term=response.raftTerm,
            database_bytes=response.dbSize,
            errors=tuple(response.errors),
        )
