"""Engines with real peer listeners between them, on rows in memory: one database for each IDC."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.admission import Admission
from gateway.decisions import DecisionMessages
from gateway.engine import Engine
from gateway.exchange import ExchangeShared
from gateway.identity import PeerSide
from gateway.ladder import Ladder
from gateway.limits import EngineSettings, PeerSettings
from gateway.operations import CallContext
from gateway.peers import Peers
from gateway.row_service import ExchangeService
from gateway.server import PEER_MESSAGE_BYTES, Listener
from gateway.settings import Address, GatewaySettings
from policy.records import GatewayRecord
from runtime.telemetry.tracing import Tracing
from tests.support.routing import HandView

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.operations import OperationOutcome, RowOperation
    from policy.table import RoutingTable
    from tests.support.memory_rows import MemoryRows


class PeerGateway:
    """One gateway: its view of the law, its engine, and the peer listener that is in front of it."""

    def __init__(self, idc: str, name: str, table: RoutingTable, rows: MemoryRows, settings: EngineSettings) -> None:
        self.idc = idc
        self.name = name
        self.rows = rows
        self.view = HandView(table)
        self.tracing = Tracing("gateway", idc, 0.0, None)
        self.peers = Peers(idc, self.view, PeerSettings())
        self.engine = Engine(idc, self.view, rows, self.peers, self.tracing, settings=settings)
        self.address = Address("127.0.0.1", 0)
        self._listener: Listener | None = None

    @property
    def record(self) -> GatewayRecord:
        """What the others are told of it."""
        return GatewayRecord(f"{self.idc}-{self.name}", self.idc, "127.0.0.1:1", str(self.address), 1, 1)

    async def listen(self) -> None:
        """Starts the peer listener, on the port that it had before."""
        admission = Admission(GatewaySettings(idc=self.idc, database_url="postgresql://unused"))
        admission.open()
        ladder = Ladder(admission, PeerSide(has_tls=False), self.tracing, self.idc)
        shared = ExchangeShared(self.engine, self.view, admission, DecisionMessages(), 64, tracing=self.tracing)
        self._listener = Listener(PEER_MESSAGE_BYTES)
        self._listener.serve_exchange(ExchangeService(ladder, shared))
        self.address = self._listener.bind(self.address, None)
        await self._listener.start()

    async def die(self) -> None:
        """Cuts every connection at once, as a killed process does."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.server.stop(None)

    async def do(self, *operations: RowOperation, timeout: float = 20.0, **context: str) -> list[OperationOutcome]:
        """Performs operations that have entered here."""
        deadline = asyncio.get_running_loop().time() + timeout
        return await self.engine.execute(operations, CallContext(deadline, **context))


class Gateways:
    """All of them, each knowing the others."""

    def __init__(self) -> None:
        self.all: list[PeerGateway] = []

    def publish(self, *gone: PeerGateway) -> None:
        """Tells everybody which gateways live."""
        directory: dict[str, tuple[GatewayRecord, ...]] = {}
        for gateway in self.all:
            if gateway not in gone:
                directory[gateway.idc] = (*directory.get(gateway.idc, ()), gateway.record)
        for gateway in self.all:
            gateway.view.gateways = directory


@asynccontextmanager
async def running(
    table: RoutingTable, rows: dict[str, MemoryRows], *names: str, settings: EngineSettings | None = None
) -> AsyncIterator[tuple[PeerGateway, ...]]:
    """Runs gateways named `<idc>-<name>`; the rows of an IDC are shared by its gateways."""
    gateways = Gateways()
    try:
        for full in names:
            idc, _, name = full.partition("-")
            gateway = PeerGateway(idc, name, table, rows[idc], settings or EngineSettings())
            gateways.all.append(gateway)
            await gateway.listen()
        gateways.publish()
        yield tuple(gateways.all)
    finally:
        await asyncio.gather(*(gateway.peers.close() for gateway in gateways.all))
        await asyncio.gather(*(gateway.die() for gateway in gateways.all))
