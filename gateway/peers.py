"""The gateways of other IDCs: which of them to ask, and what to do when one does not answer.

A unit that lost its stream is sent once more, to another gateway of that IDC where there is one, if it had not been
sent or if repeating it can do no harm (reads, and writes with a request_id). Otherwise nobody knows whether it was
done, and the caller is told so. A gateway that could not be reached is passed over for a while.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import grpc.aio
import structlog

from gateway import metrics
from gateway.peer_link import INGRESS_METADATA, ORIGIN_METADATA, Link, Unit
from policy.errors import PeerUnreachable, RegiongateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.hold import FollowerLike
    from gateway.limits import PeerSettings
    from gateway.operations import RowOperation
    from policy.records import GatewayRecord
    from regiongate.v1.row_service_pb2 import OperationResult

log = structlog.get_logger("regiongate.gateway.peers")

CHANNEL_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    # What a caller may send was bounded where it entered; repacked for a peer it may be a little larger.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
"""Options of every channel to a peer."""

MAX_ATTEMPTS: Final = 2


def plaintext_channel(record: GatewayRecord) -> grpc.aio.Channel:
    """A channel to a peer without TLS."""
    return grpc.aio.insecure_channel(record.peer_address, options=CHANNEL_OPTIONS)


class Peers:
    """Kept streams to the live gateways of every other IDC, opened when they are needed."""

    def __init__(
        self,
        idc: str,
        follower: FollowerLike,
        settings: PeerSettings,
        connect: Callable[[GatewayRecord], grpc.aio.Channel] = plaintext_channel,
    ) -> None:
        """Opens nothing yet.

        Args:
            idc: Where this gateway stands.
            follower: Knows the live gateways.
            settings: Limits.
            connect: Makes a channel to the peer listener of a gateway, with the credentials it takes.
        """
        self._idc = idc
        self._follower = follower
        self._settings = settings
        self._connect = connect
        self._links: dict[tuple[str, str], Link] = {}
        self._failed: dict[str, float] = {}
        """Peer address -> when it may be tried again, on the loop's clock."""
        self._turn = 0
        self._is_closed = False

    def submit(
        self,
        idc: str,
        operations: Sequence[RowOperation],
        traceparents: Sequence[str],
        *,
        purpose: str,
        origin_idc: str,
        deadline: float,
    ) -> asyncio.Future[list[OperationResult] | RegiongateError]:
        """Sends the operations to a gateway of the IDC together.

        Returns:
            A future with one result for each operation, or with the error that ends all of them: `PeerUnreachable`,
            `LimitReached` or `DeadlineExceeded`. Cancelling it takes back what was not sent.
        """
        unit = Unit(operations, traceparents, purpose, deadline)
        try:
            self._pick(idc, origin_idc).submit(unit)
        except PeerUnreachable as error:
            unit.fail(error)
        return unit.future

    def channel(self, idc: str) -> grpc.aio.Channel:
        """A channel to the peer listener of a live gateway of the IDC, which ends with that gateway.

        Raises:
            PeerUnreachable: there is none.
        """
        return self._pick(idc, "").channel

    async def close(self) -> None:
        """Ends all streams; what has no answer fails."""
        self._is_closed = True
        await asyncio.gather(*(link.close() for link in list(self._links.values())))

    def _pick(self, idc: str, origin_idc: str, passing_over: str = "") -> Link:
        """The link to use: live gateways take turns, those that failed just now are passed over."""
        now = asyncio.get_running_loop().time()
        live = self._follower.gateways.get(idc, ())
        able = [it for it in live if it.peer_address != passing_over and self._failed.get(it.peer_address, 0.0) <= now]
        if not able or self._is_closed:
            raise PeerUnreachable(f"no gateway of {idc} can be reached", retry_after=self._settings.retry_pause)
        self._turn += 1
        record = able[self._turn % len(able)]
        link = self._links.get((record.peer_address, origin_idc))
        return link if link is not None and link.is_usable else self._open(record, origin_idc)

    def _open(self, record: GatewayRecord, origin_idc: str) -> Link:
        metadata = [(INGRESS_METADATA, self._idc)]
        if origin_idc:
            metadata.append((ORIGIN_METADATA, origin_idc))
        link = self._links[record.peer_address, origin_idc] = Link(
            record,
            self._connect(record),
            metadata,
            self._settings,
            is_listed=lambda: self._is_listed(record),
            on_broken=lambda broken, units: self._recover(broken, origin_idc, units),
        )
        return link

    def _is_listed(self, record: GatewayRecord) -> bool:
        return any(it.peer_address == record.peer_address for it in self._follower.gateways.get(record.idc, ()))

    def _recover(self, link: Link, origin_idc: str, units: list[Unit]) -> None:
        """Sends what lost its stream once more, where that is lawful, or tells its callers."""
        address = link.record.peer_address
        metrics.PEER_BREAKS.labels(link.record.idc).inc()
        if self._links.get((address, origin_idc)) is link:
            del self._links[address, origin_idc]
        if not link.was_open:
            pause = self._settings.retry_pause.total_seconds()
            self._failed[address] = asyncio.get_running_loop().time() + pause
        live = self._follower.gateways.get(link.record.idc, ())
        # The same gateway again only when it is the only one: a stream that was open may have ended for a small reason.
        passing_over = address if len(live) > 1 else ""
        for unit in units:
            if unit.future.done():
                continue
            if not unit.is_repeatable:
                unit.fail(PeerUnreachable(f"the stream to {link.record.idc} ended; the write may have been done"))
            elif unit.attempts >= MAX_ATTEMPTS:
                unit.fail(PeerUnreachable(f"the gateways of {link.record.idc} do not answer"))
            else:
                self._send_again(link.record.idc, origin_idc, passing_over, unit)

    def _send_again(self, idc: str, origin_idc: str, passing_over: str, unit: Unit) -> None:
        try:
            self._pick(idc, origin_idc, passing_over).submit(unit)
        except PeerUnreachable as error:
            unit.fail(error)
