"""The gateway process: puts the parts together, starts them, and ends them in order.

Start: the listeners are bound and answer from the beginning, with health NOT_SERVING and UNAVAILABLE for every call,
until the gateway has registered under the law that it has loaded (law L6). The database may be down meanwhile; the
schema keeper goes on trying, and readiness says so.

Stop: health says NOT_SERVING and the record goes, so that nobody new comes; then streams end after what they have in
work, calls in flight finish, and only then do the engine, the peers and the database end.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc.aio
import structlog

from gateway.admission import Admission
from gateway.call_metrics import ETCD_CONNECTED
from gateway.certificates import client_listener_credentials, peer_channel_credentials, peer_listener_credentials
from gateway.crossings import Crossings, CrossingsRecorder
from gateway.decisions import DecisionMessages
from gateway.doorbell import Doorbell
from gateway.engine import Engine
from gateway.exchange import ExchangeShared
from gateway.export_source import ExportSource
from gateway.identity import ClientSide, PeerSide
from gateway.job_local import LocalJobs
from gateway.job_peers import JobPeers
from gateway.job_service import JobService, PeerJobService
from gateway.ladder import Ladder
from gateway.limits import EngineSettings, PeerSettings
from gateway.listing import Lister
from gateway.measures import PeerMeasures
from gateway.move_checks import MoveChecks
from gateway.peers import CHANNEL_OPTIONS, Peers, plaintext_channel
from gateway.policy_service import PolicyService
from gateway.routing_service import RoutingService
from gateway.row_move import RowMover
from gateway.row_move_homes import RowHomes
from gateway.row_move_receiver import RowReceiver
from gateway.row_move_sweeper import RowMoveSweeper
from gateway.row_service import ExchangeService, RowService
from gateway.scan import Scanner
from gateway.schema_keeper import SchemaKeeper, forget_requests
from gateway.server import MAX_MESSAGE_BYTES, PEER_MESSAGE_BYTES, Listener
from gateway.shard_export import ShardExports
from gateway.shard_import import ShardImports
from gateway.shard_moves import ShardMoves
from gateway.shard_service import Moves, ShardService
from policy.errors import RegiongateError
from policy.follower import Follower
from policy.metrics import POLICY_AGE
from policy.presence import Presence
from policy.records import Keys
from policy.store import PolicyStore
from policy.view import PolicyView
from rowstore.database import Database
from rowstore.moving import Mover
from rowstore.schema import ensure_datasets, migrate
from rowstore.store import RowStore
from runtime import lifecycle
from runtime.etcd import EtcdClient, EtcdError
from runtime.telemetry.http import Readiness, serve_telemetry
from runtime.telemetry.logs import setup_logging
from runtime.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.settings import GatewaySettings
    from policy.records import GatewayRecord

log = structlog.get_logger("gateway.main")

_REGISTRATION_LOOK: Final = 5.0
"""Seconds between two log lines about a registration that does not come."""

_GC_OBJECTS: Final = 20_000
"""New objects between two of the cheapest collections; Python's own number would make one every few calls."""

_DATABASE_LOOK: Final = 2.0
"""Seconds between two signs of life from the database."""


def run(settings: GatewaySettings) -> int:
    """Runs a gateway until it is told to stop; returns the exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    setup_logging("gateway", settings.idc, settings.log_format, settings.log_level)
    return lifecycle.run(partial(_main, settings))


async def _main(settings: GatewaySettings, stop: asyncio.Event) -> None:
    tracing = Tracing("gateway", settings.idc, settings.trace_sample_ratio, settings.trace_directory, settings.gateway)
    try:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(EtcdClient(settings.etcd_settings()))
            database = await stack.enter_async_context(
                Database.open(
                    settings.database_url.get_secret_value(),
                    size=settings.database_connections,
                    application_name=f"regiongate-gateway-{settings.idc}",
                )
            )
            gateway = Gateway(settings, client, database, tracing)
            await stack.enter_async_context(
                await serve_telemetry(settings.metrics_host, settings.metrics_port, gateway.readiness)
            )
            # What lives as long as the process is left out of every garbage collection, and calls make few cycles.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GC_OBJECTS, 20, 50)
            await gateway.serve(stop)
    finally:
        await asyncio.to_thread(tracing.shutdown)


class Gateway:
    """The parts of one gateway."""

    def __init__(self, settings: GatewaySettings, client: EtcdClient, database: Database, tracing: Tracing) -> None:
        """Binds the listeners; starts nothing. Raises `CannotListen`, or `OSError` for certificates."""
        idc = settings.idc
        keys = Keys(settings.cluster)
        self._settings = settings
        self._client = client
        self._database = database
        self._admission = Admission(settings)
        self._clients, self._peer_side = Listener(MAX_MESSAGE_BYTES), Listener(PEER_MESSAGE_BYTES)
        self.address = self._clients.bind(settings.listen, client_listener_credentials(settings))
        self.peer_address = self._peer_side.bind(settings.peer_listen, peer_listener_credentials(settings))
        self._follower = Follower(client, keys)
        name = settings.gateway or f"{idc}-{secrets.token_hex(3)}"
        self._presence = Presence(
            client,
            keys,
            self._follower,
            gateway=name,
            idc=idc,
            address=settings.advertise or str(self.address),
            peer_address=settings.peer_advertise or str(self.peer_address),
            ttl=settings.lease_ttl,
        )
        self.view = PolicyView(self._follower, self._presence)
        self._store = RowStore(database)
        self._mover = Mover(database)
        self._peers = Peers(idc, self.view, PeerSettings(), _connector(settings))
        self._source = ExportSource(idc, self.view, _connector(settings))
        limits = EngineSettings(max_held=settings.max_held, hold_timeout=settings.hold_timeout)
        policies = PolicyStore(client, keys)
        self._crossings = Crossings()
        self._recorder = CrossingsRecorder(
            self._crossings, policies.audit, gateway=name, idc=idc, every=settings.audit_interval
        )
        self._doorbell = Doorbell(database)
        self._engine = Engine(
            idc,
            self.view,
            self._store,
            self._peers,
            tracing,
            settings=limits,
            crossings=self._crossings,
            wrote=self._doorbell.ring,
        )
        self._keeper = SchemaKeeper(
            self.view,
            migrate=partial(migrate, settings.database_url.get_secret_value()),
            ensure=partial(ensure_datasets, database),
            report=self._presence.report_schema,
        )
        moves = self._store.moves
        self._row_receiver = RowReceiver(idc, self.view, moves)
        homes = RowHomes(idc, self._row_receiver, self._peers)
        self._row_mover = RowMover(
            idc, self.view, moves, homes, crossings=self._crossings, hold_timeout=settings.hold_timeout
        )
        self._row_sweeper = RowMoveSweeper(self.view, moves, homes)
        self._add_services(policies, tracing)
        ETCD_CONNECTED.set_function(lambda: float(client.is_connected))
        POLICY_AGE.set_function(lambda: time.monotonic() - self._follower.last_event)

    def _add_services(self, policies: PolicyStore, tracing: Tracing) -> None:
        settings, view, idc = self._settings, self.view, self._settings.idc
        decisions = DecisionMessages()
        shared = ExchangeShared(
            self._engine, view, self._admission, decisions, settings.max_stream_messages, tracing=tracing
        )
        scanner = Scanner(idc, view, self._store)
        lister = Lister(
            idc,
            view,
            scanner=scanner,
            peers=self._peers,
            decisions=decisions,
            hold_timeout=settings.hold_timeout.total_seconds(),
            crossings=self._crossings,
        )
        clients = Ladder(self._admission, ClientSide(), tracing, idc)
        self._clients.serve_rows(RowService(clients, shared, lister, self._row_mover))
        self._clients.serve_routes(RoutingService(clients, idc, view))
        self._clients.serve_policies(PolicyService(clients, policies, PeerMeasures(idc, view, _connector(settings))))
        jobs = LocalJobs(idc, view, self._database, policies)
        self._clients.serve_jobs(JobService(clients, jobs, JobPeers(idc, view, self._peers), policies.audit))
        peers = Ladder(self._admission, PeerSide(has_tls=settings.has_peer_tls), tracing, idc)
        self._peer_side.serve_exchange(ExchangeService(peers, shared))
        self._peer_side.serve_jobs(PeerJobService(peers, jobs))
        self._peer_side.serve_shards(self._make_shard_service(peers, scanner, decisions))

    def _make_shard_service(self, ladder: Ladder, scanner: Scanner, decisions: DecisionMessages) -> ShardService:
        idc, view, mover = self._settings.idc, self.view, self._mover
        checks = MoveChecks(idc, view)
        moves = Moves(
            ShardMoves(idc, checks, mover),
            ShardExports(checks, mover),
            ShardImports(idc, checks, mover, self._source),
            mover,
        )
        fences = self._store.fences
        return ShardService(
            ladder,
            idc,
            view,
            fences=fences,
            scanner=scanner,
            decisions=decisions,
            moves=moves,
            row_mover=self._row_mover,
            row_receiver=self._row_receiver,
        )

    @property
    def is_open(self) -> bool:
        """Whether it has registered, and takes calls."""
        return self._admission.is_open

    def readiness(self) -> Readiness:
        """Whether this gateway can do all of its work; a lost policy store alone does not make it unready."""
        table = self.view.table
        is_current = self._keeper.revision >= (table.policy.revision if table is not None else 0)
        checks = {
            "registered": "ok" if self._admission.is_open else "not registered, or stopping",
            "database": "ok" if self._database.is_connected else "not connected",
            "schema": "ok" if is_current and not self._keeper.problem else self._keeper.problem or "behind the policy",
        }
        is_ready = all(state == "ok" for state in checks.values())
        checks["policy_store"] = "ok" if self._client.is_connected else "not connected"
        checks["policy_fresh"] = "ok" if self.view.is_fresh else "serves its own jurisdiction only"
        return Readiness(is_ready, checks)

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves until the event is set, then ends everything in order."""
        await self._follower.start()
        await self._clients.start()
        await self._peer_side.start()
        log.info("listening", address=str(self.address), peer_address=str(self.peer_address))
        await self._presence.start()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._keeper.run()),
                    group.create_task(forget_requests(self._store.forget_requests)),
                    group.create_task(self._open()),
                    group.create_task(self._check_store()),
                    group.create_task(self._check_database()),
                    group.create_task(self._recorder.run()),
                    group.create_task(self._row_sweeper.run()),
                ]
                await stop.wait()
                await self._drain()
                for task in tasks:
                    task.cancel()
        finally:
            await self._end()

    async def _open(self) -> None:
        """Takes calls as soon as the gateway has registered."""
        now = asyncio.get_running_loop().time
        while not await self._presence.wait_registered(now() + _REGISTRATION_LOOK):
            log.warning("not registered yet", policy_store="ok" if self._client.is_connected else "not connected")
        self._admission.open()
        await self._set_serving(is_serving=True)
        log.info("serving")

    async def _check_store(self) -> None:
        """Looks once at what serves the policy: the client warns of versions that can lose data."""
        try:
            await self._client.status()
        except EtcdError as error:
            log.warning("the policy store does not tell its version", reason=type(error).__name__)

    async def _check_database(self) -> None:
        """Looks at the database now and then, so that readiness and the doorbell are right while nobody calls."""
        while True:
            with suppress(RegiongateError):
                await self._doorbell.look()
            await asyncio.sleep(_DATABASE_LOOK)

    async def _set_serving(self, *, is_serving: bool) -> None:
        for listener in (self._clients, self._peer_side):
            await listener.set_serving(is_serving=is_serving)

    async def _drain(self) -> None:
        grace = self._settings.drain_timeout.total_seconds()
        await self._set_serving(is_serving=False)
        await self._presence.stop()
        self._admission.close()
        await asyncio.gather(self._clients.stop(grace), self._peer_side.stop(grace))
        log.info("drained", operations=self._admission.operations)

    async def _end(self) -> None:
        """Ends what is left; after a drain nothing is in flight any more."""
        self._admission.close()
        await self._presence.stop()
        await asyncio.gather(self._clients.stop(0), self._peer_side.stop(0))
        await self._row_mover.drain()
        await self._source.close()
        await self._peers.close()
        await self._engine.drain()
        await self._doorbell.close()
        await self._mover.aclose()
        await self._recorder.stop()
        await self._follower.stop()


def _connector(settings: GatewaySettings) -> Callable[[GatewayRecord], grpc.aio.Channel]:
    """How to reach the peer listener of another gateway."""
    if not settings.has_peer_tls:
        return plaintext_channel

    def connect(record: GatewayRecord) -> grpc.aio.Channel:
        # Read for each channel: a rotated certificate is shown from the next connection on.
        return grpc.aio.secure_channel(record.peer_address, peer_channel_credentials(settings), options=CHANNEL_OPTIONS)

    return connect
