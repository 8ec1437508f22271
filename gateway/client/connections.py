"""Which gateway a call goes to: the owner's, another one of the same IDC, or home, which forwards.

A gateway that failed rests for a moment and is tried again. Channels and lanes of gateways that the routes no longer
name are closed once nothing waits on them.
"""

from __future__ import annotations

import asyncio
from random import randrange
from typing import TYPE_CHECKING, Final

from gateway.client.endpoint import Endpoint
from gateway.client.failures import closed
from gateway.client.lane import Lane
from gateway.client.routes import HOME

if TYPE_CHECKING:
    from gateway.client.model import ClientSettings
    from gateway.client.routes import Routes


_LAST_CALLS: Final = 30.0
"""Seconds that calls have to end on a gateway that has left the routes."""


class Connections:
    """All endpoints and lanes of one client."""

    def __init__(self, targets: tuple[str, ...], routes: Routes, settings: ClientSettings) -> None:
        self._targets = targets
        self._routes = routes
        self._settings = settings
        self._endpoints: dict[str, Endpoint] = {}
        self._lanes: dict[tuple[str, str], Lane] = {}
        """(address, stated origin) -> open lane."""
        self._current: dict[str, Lane] = {}
        """IDC or `HOME` -> the lane that its calls take now; absent: choose anew."""
        self._closing: set[asyncio.Task[None]] = set()
        self._retired: set[Endpoint] = set()
        """Endpoints that finish their last calls."""
        self._is_closed = False
        # Clients start at different gateways of an IDC, and then stay there.
        self._turn = randrange(1 << 16)  # noqa: S311 (spreading, not secrecy)

    def lane_to(self, hop: str) -> Lane:
        """A lane for calls that should go to the IDC, or `HOME`."""
        lane = self._current.get(hop)
        if lane is not None and lane.is_open:
            return lane
        endpoint, is_there = self._choose(hop)
        lane = self._lane(endpoint)
        if is_there:
            self._current[hop] = lane
        return lane

    def endpoint_to(self, hop: str) -> Endpoint:
        """A gateway for a single call that should go to the IDC, or `HOME`."""
        return self._choose(hop)[0]

    def origin_for(self, endpoint: Endpoint) -> str:
        """What to state as origin there; empty at home. Stating it can only narrow what is allowed."""
        routes = self._routes
        is_home = endpoint.address == routes.home_address or endpoint.address in routes.endpoints_of(routes.home_idc)
        return "" if is_home else routes.home_idc

    def report(self, endpoint: Endpoint) -> None:
        """Notes that the gateway did not answer, so that the next call goes elsewhere where it can."""
        endpoint.fail()
        for hop in [hop for hop, lane in self._current.items() if lane.endpoint is endpoint]:
            del self._current[hop]

    def home_candidates(self) -> tuple[str, ...]:
        """Where the routes came from last, the target's other addresses, then the other gateways of the home IDC."""
        last, others = self._routes.home_address, self._routes.endpoints_of(self._routes.home_idc)
        return tuple(dict.fromkeys((*((last,) if last else ()), *self._targets, *others)))

    def endpoint(self, address: str) -> Endpoint:
        """The endpoint of an address."""
        known = self._endpoints.get(address)
        if known is None:
            known = self._endpoints[address] = Endpoint(address, self._settings.tls)
        return known

    def _choose(self, hop: str) -> tuple[Endpoint, bool]:
        """An endpoint, and whether it is where the call should go (and not a way round)."""
        if self._is_closed:
            raise closed()
        there = self._candidates(hop)
        for endpoint in there:
            if endpoint.is_up:
                return endpoint, True
        round_about = self._candidates(HOME) if hop != HOME else []
        for endpoint in round_about:
            if endpoint.is_up:
                return endpoint, False
        return min((*there, *round_about), key=lambda endpoint: endpoint.rests_until), False

    def _candidates(self, hop: str) -> list[Endpoint]:
        if hop == HOME:
            return [self.endpoint(address) for address in self.home_candidates()]
        addresses = self._routes.endpoints_of(hop)
        turn = self._turn % len(addresses) if addresses else 0
        return [self.endpoint(address) for address in (*addresses[turn:], *addresses[:turn])]

    def _lane(self, endpoint: Endpoint) -> Lane:
        where = (endpoint.address, self.origin_for(endpoint))
        lane = self._lanes.get(where)
        if lane is None or not lane.is_open:
            lane = self._lanes[where] = Lane(endpoint, where[1], self._settings, self._forget)
        return lane

    def _forget(self, lane: Lane) -> None:
        where = (lane.endpoint.address, lane.origin)
        if self._lanes.get(where) is lane:
            del self._lanes[where]
        for hop in [hop for hop, current in self._current.items() if current is lane]:
            del self._current[hop]

    def adapt(self) -> None:
        """Follows news of the routes: calls choose anew, and what nobody needs is closed."""
        self._current.clear()
        needed = self._routes.all_endpoints().union(self._targets, [self._routes.home_address])
        stale = [lane for lane in self._lanes.values() if lane.is_idle and self._is_stale(lane, needed)]
        for lane in stale:
            del self._lanes[lane.endpoint.address, lane.origin]
        needed.update(address for address, _ in self._lanes)
        unused = [self._endpoints.pop(address) for address in set(self._endpoints) - needed]
        if stale or unused:
            self._retired.update(unused)
            task = asyncio.get_running_loop().create_task(self._retire(stale, unused))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _retire(self, lanes: list[Lane], endpoints: list[Endpoint]) -> None:
        # A gateway that drains has left the routes, and still answers the calls that it has taken.
        await asyncio.gather(
            *(lane.close() for lane in lanes), *(endpoint.close(_LAST_CALLS) for endpoint in endpoints)
        )
        self._retired.difference_update(endpoints)

    def _is_stale(self, lane: Lane, needed: set[str]) -> bool:
        return lane.endpoint.address not in needed or lane.origin != self.origin_for(lane.endpoint)

    async def close(self) -> None:
        """Closes everything; calls that still wait fail."""
        self._is_closed = True
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for lane in list(self._lanes.values()):
            await lane.close()
        for endpoint in (*self._endpoints.values(), *self._retired):
            await endpoint.close()
