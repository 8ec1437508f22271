"""One engine on rows in memory, with the other IDCs out of reach."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.engine import Engine
from gateway.limits import EngineSettings, PeerSettings
from gateway.operations import Action, CallContext, RowOperation
from gateway.peers import Peers
from runtime.telemetry.tracing import Tracing
from tests.support import routing
from tests.support.memory_rows import MemoryRows

if TYPE_CHECKING:
    from policy.table import RoutingTable

LAW = routing.policy()
TABLE = routing.table(LAW)
CUSTOMERS = LAW.datasets["customers"]
NO_TRACES = Tracing("gateway", "fra", 0.0, None)


def get(key: str, region_code: str = "DE", columns=None, **fields) -> RowOperation:
    return RowOperation(Action.GET, CUSTOMERS, region_code, key, columns, **fields)


def put(key: str, name: str = "n", region_code: str = "DE", **fields) -> RowOperation:
    return RowOperation(Action.PUT, CUSTOMERS, region_code, key, values={"name": name, "spend": 1}, **fields)


def delete(key: str, region_code: str = "DE", **fields) -> RowOperation:
    return RowOperation(Action.DELETE, CUSTOMERS, region_code, key, **fields)


class Gateway:
    """One engine on rows in memory."""

    def __init__(
        self, idc: str = "fra", table: RoutingTable | None = TABLE, tracing: Tracing = NO_TRACES, **settings
    ) -> None:
        self.view = routing.HandView(table)
        self.rows = MemoryRows()
        self.rows.open_all(TABLE, idc)
        peers = Peers(idc, self.view, PeerSettings())
        self.engine = Engine(idc, self.view, self.rows, peers, tracing, settings=EngineSettings(**settings))

    async def do(self, *operations: RowOperation, **context):
        return await self.engine.execute(operations, self.context(**context))

    def context(self, timeout: float = 30.0, **fields) -> CallContext:
        return CallContext(asyncio.get_running_loop().time() + timeout, **fields)


SUPPORT = {"ingress_idc": "sin", "purpose": "support"}
ENTRY = {"ingress_idc": "sin", "purpose": "entry"}
