"""RoutingService: who owns which shard, for clients that go straight to the owner.

A watcher gets a snapshot, then what has changed since its last message, always up to the newest state: a slow one
misses steps in between, never the last, and nothing is queued for it. A route that was learned here grants nothing;
the owner judges every operation by its own table.
"""

# The ladder's decorator makes parameters positional, which is how grpc passes them.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Protocol

from gateway.call_metrics import STREAMS_OPEN
from gateway.decisions import to_message
from gateway.judge import asking_side
from gateway.ladder import unary
from gateway.requests import check_region, table_of
from gateway.status import abort
from gateway.values import decode_key
from policy.errors import InvalidValue, TableTooOld, Unavailable
from policy.model import Operation
from regiongate.v1 import routing_service_pb2, routing_service_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping

    import grpc.aio

    from gateway.ladder import Call, Ladder
    from policy.model import Route
    from policy.records import GatewayRecord
    from policy.table import RoutingTable

    Context = grpc.aio.ServicerContext[Any, Any]

ROUTES_PER_MESSAGE: Final = 20_000

_OPERATIONS: Final = {
    types_pb2.OPERATION_KIND_READ: Operation.READ,
    types_pb2.OPERATION_KIND_WRITE: Operation.WRITE,
}


class Followed(Protocol):
    """What the services need of the policy view."""

    @property
    def table(self) -> RoutingTable | None:
        """The newest routing table."""
        ...

    @property
    def gateways(self) -> Mapping[str, tuple[GatewayRecord, ...]]:
        """IDC -> its live gateways."""
        ...

    @property
    def is_fresh(self) -> bool:
        """Whether border crossings may be judged."""
        ...

    def subscribe(self) -> AsyncIterator[RoutingTable | None]:
        """The table now, and after each change of table or gateways."""
        ...


class RoutingService(routing_service_pb2_grpc.RoutingServiceServicer):
    """Tells routes to clients."""

    def __init__(self, ladder: Ladder, idc: str, view: Followed) -> None:
        self.ladder = ladder
        self._idc = idc
        self._view = view
        self._open = STREAMS_OPEN.labels("WatchRoutes")

    @unary
    async def ResolveRoute(  # noqa: N802 (gRPC's name)
        self, request: routing_service_pb2.ResolveRouteRequest, call: Call
    ) -> routing_service_pb2.ResolveRouteResponse:
        """The owner of a row's shard, and what the policy says of an operation on it."""
        view = self._view
        table = table_of(view)
        policy = table.policy
        dataset = policy.dataset(request.dataset)
        region_code = check_region(request.region_code)
        key = decode_key(dataset, request.key)
        kind = _OPERATIONS.get(request.operation)
        if kind is None:
            raise InvalidValue("operation is OPERATION_KIND_READ or OPERATION_KIND_WRITE", field_name="operation")
        purpose = request.purpose or call.context.purpose
        asking = asking_side(self._idc, call.context)
        decision = policy.decide(dataset.name, region_code, asking.askers, kind, purpose)
        route = table.resolve(region_code, key)
        if not asking.is_home(policy, route.idc) and not view.is_fresh:
            raise TableTooOld("this gateway has lost touch with the policy store and cannot say (law L6)")
        return routing_service_pb2.ResolveRouteResponse(
            route=_route_message(route),
            decision=to_message(decision, route.idc),
            allowed=decision.allowed,
            reason=decision.reason,
            endpoints=[record.address for record in view.gateways.get(route.idc, ())],
        )

    async def WatchRoutes(  # noqa: N802 (gRPC's name)
        self,
        request: routing_service_pb2.WatchRoutesRequest,  # noqa: ARG002 (it has no fields)
        context: Context,
    ) -> AsyncIterator[routing_service_pb2.WatchRoutesResponse]:
        """All routes, then every change."""
        admission = self.ladder.admission
        is_counted = False
        try:
            self.ladder.side.identify(context)
            admission.admit_stream()
            is_counted = True
            self._open.inc()
            async with aclosing(self._follow()) as messages:
                async for message in messages:
                    yield message
            raise Unavailable("this gateway is stopping")
        except Exception as error:  # noqa: BLE001 (this is where a stream's error gets its status)
            await abort(context, error, where="WatchRoutes")
        finally:
            if is_counted:
                self._open.dec()
                admission.release_stream()

    async def _follow(self) -> AsyncGenerator[routing_service_pb2.WatchRoutesResponse]:
        """Messages until the gateway stops."""
        sent = Sent(self._idc)
        draining = asyncio.create_task(self.ladder.admission.draining.wait())
        tables = self._view.subscribe()
        try:
            while not draining.done():
                following = asyncio.ensure_future(anext(tables))
                await asyncio.wait((following, draining), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    await asyncio.wait((following,))
                    return
                for message in sent.update(following.result(), self._view.gateways):
                    yield message
        finally:
            draining.cancel()


class Sent:
    """What one watcher has been told, and what it must be told next."""

    def __init__(self, idc: str) -> None:
        self._idc = idc
        self._is_first = True
        self._table: RoutingTable | None = None
        self._gateways: Mapping[str, tuple[GatewayRecord, ...]] = {}

    def update(
        self, table: RoutingTable | None, gateways: Mapping[str, tuple[GatewayRecord, ...]]
    ) -> Iterator[routing_service_pb2.WatchRoutesResponse]:
        """The messages that bring the watcher from what it knows to this state; none when nothing differs."""
        known, self._table = self._table, table
        known_gateways, self._gateways = self._gateways, gateways
        if self._is_first or table is None or known is None or known.policy is not table.policy:
            if self._is_first or table is not known:
                yield from self._snapshot(table, gateways)
            self._is_first = False
            return
        routes = list(_changed_routes(known, table))
        idcs = [idc for idc in table.policy.idcs if _addresses(known_gateways, idc) != _addresses(gateways, idc)]
        if routes or idcs:
            yield from self._messages(table, routes, _idc_messages(table, gateways, idcs), is_snapshot=False)

    def _snapshot(
        self, table: RoutingTable | None, gateways: Mapping[str, tuple[GatewayRecord, ...]]
    ) -> Iterator[routing_service_pb2.WatchRoutesResponse]:
        if table is None:
            yield routing_service_pb2.WatchRoutesResponse(snapshot=True, home_idc=self._idc)
            return
        idcs = _idc_messages(table, gateways, table.policy.idcs)
        yield from self._messages(table, list(table.all_routes()), idcs, is_snapshot=True)

    def _messages(
        self,
        table: RoutingTable,
        routes: list[Route],
        idcs: list[routing_service_pb2.IdcEndpoints],
        *,
        is_snapshot: bool,
    ) -> Iterator[routing_service_pb2.WatchRoutesResponse]:
        """One message, or several where there are too many routes for one."""
        for start in range(0, max(1, len(routes)), ROUTES_PER_MESSAGE):
            message = routing_service_pb2.WatchRoutesResponse(
                snapshot=is_snapshot and start == 0,
                policy_revision=table.policy.revision,
                store_revision=table.store_revision,
                home_idc=self._idc,
                routes=[_route_message(route) for route in routes[start : start + ROUTES_PER_MESSAGE]],
            )
            if start == 0:
                message.idcs.extend(idcs)
                if is_snapshot:
                    message.datasets.extend(_dataset_messages(table))
                    message.regions.extend(_region_messages(table))
            yield message


def _changed_routes(known: RoutingTable, table: RoutingTable) -> Iterator[Route]:
    for region_code in table.policy.regions:
        old, new = known.routes_of(region_code), table.routes_of(region_code)
        if old is not new:
            yield from (route for before, route in zip(old, new, strict=True) if route is not None and route != before)


def _addresses(gateways: Mapping[str, tuple[GatewayRecord, ...]], idc: str) -> list[str]:
    return [record.address for record in gateways.get(idc, ())]


def _idc_messages(
    table: RoutingTable, gateways: Mapping[str, tuple[GatewayRecord, ...]], idcs: Iterable[str]
) -> list[routing_service_pb2.IdcEndpoints]:
    return [
        routing_service_pb2.IdcEndpoints(
            idc=idc, jurisdiction=table.policy.idcs[idc], endpoints=_addresses(gateways, idc)
        )
        for idc in idcs
    ]


def _dataset_messages(table: RoutingTable) -> Iterator[routing_service_pb2.DatasetInfo]:
    for dataset in table.policy.datasets.values():
        types = {column.name: str(column.type) for column in dataset.columns.values()}
        yield routing_service_pb2.DatasetInfo(dataset=dataset.name, key_type=str(dataset.key_type), column_types=types)


def _region_messages(table: RoutingTable) -> Iterator[routing_service_pb2.RegionInfo]:
    for residency in table.policy.regions.values():
        yield routing_service_pb2.RegionInfo(region_code=residency.region_code, shards=residency.shards)


def _route_message(route: Route) -> routing_service_pb2.ShardRoute:
    return routing_service_pb2.ShardRoute(
        region_code=route.region_code, shard=route.shard, idc=route.idc, epoch=route.epoch, phase=str(route.phase)
    )
