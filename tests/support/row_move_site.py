"""Gateways of three jurisdictions, and conductors of row moves whose calls to the other home can go wrong."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gateway.crossings import Crossings
from gateway.limits import PeerSettings
from gateway.operations import CallContext
from gateway.peers import Peers
from gateway.row_move import RowMover
from gateway.row_move_homes import RowHomes
from gateway.row_move_receiver import RowReceiver
from gateway.row_move_sweeper import RowMoveSweeper
from policy.errors import PeerUnreachable
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import shard_service_pb2 as shard_pb
from regiongate.v1 import types_pb2
from rowstore.database import Database
from rowstore.store import RowStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.gateways import Site

POLICY = """\
version: 1
idcs:
  sha: {jurisdiction: CN}
  fra: {jurisdiction: EU}
  sin: {jurisdiction: SG}
residency:
  - {name: china, regions: [CN], jurisdictions: [CN], idcs: {sha: 100}, shards: 2, transit: forbid}
  - {name: europe, regions: [DE, FR], jurisdictions: [EU], idcs: {fra: 100}, shards: 2}
  - {name: asia, regions: [SG], jurisdictions: [SG], idcs: {sin: 100}, shards: 2}
access:
  - {name: relocation, regions: [DE, FR], from: [SG], operations: [read, write], purposes: [relocation]}
  - {name: support, regions: [DE, FR], from: [SG], operations: [read], purposes: [support], withhold: [personal]}
  - {name: asia-entry, regions: [SG], from: [EU], operations: [read, write], purposes: [relocation, support, entry]}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
"""
PURPOSE = "x-regiongate-purpose"
RELOCATION = [(PURPOSE, "relocation")]
STEPS = {
    "arrive": shard_pb.ROW_MOVE_STEP_ARRIVE,
    "settle": shard_pb.ROW_MOVE_STEP_SETTLE,
    "cancel": shard_pb.ROW_MOVE_STEP_CANCEL,
    "find": shard_pb.ROW_MOVE_STEP_FIND,
    "ask": shard_pb.ROW_MOVE_STEP_ASK,
}


def key(text: str) -> types_pb2.Key:
    return types_pb2.Key(string_key=text)


def columns(name: str = "Ada", spend: int = 12) -> dict[str, types_pb2.Value]:
    return {"name": types_pb2.Value(string_value=name), "spend": types_pb2.Value(int64_value=spend)}


def put(region: str, text: str, **values: Any) -> pb.PutRowRequest:
    return pb.PutRowRequest(dataset="customers", region_code=region, key=key(text), columns=columns(**values))


def get(region: str, text: str) -> pb.GetRowRequest:
    return pb.GetRowRequest(dataset="customers", region_code=region, key=key(text))


def move(region: str, text: str, to: str, **fields: Any) -> pb.MoveRowRequest:
    fields.setdefault("request_id", uuid.uuid4().hex)
    return pb.MoveRowRequest(dataset="customers", region_code=region, key=key(text), to_region_code=to, **fields)


class FaultyHomes(RowHomes):
    """Loses a step before it is done, or its answer, or is paused there."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.loses_before: set[int] = set()
        self.loses_after: set[int] = set()
        self.pauses_before: dict[int, asyncio.Event] = {}
        self.pauses_after: dict[int, asyncio.Event] = {}
        self.reached = asyncio.Event()
        self.asked: list[int] = []

    async def ask(self, idc: str, request: shard_pb.ReceiveRowRequest, seconds: float) -> shard_pb.ReceiveRowResponse:
        step = request.step
        self.asked.append(step)
        if step in self.pauses_before:
            self.reached.set()
            await self.pauses_before[step].wait()
        if step in self.loses_before:
            raise PeerUnreachable("the request was lost")
        answer = await super().ask(idc, request, seconds)
        if step in self.pauses_after:
            self.reached.set()
            await self.pauses_after[step].wait()
        if step in self.loses_after:
            raise PeerUnreachable("the answer was lost")
        return answer


@dataclass
class Conductor:
    """Another gateway process of an IDC, as far as row moves go."""

    mover: RowMover
    homes: FaultyHomes
    sweeper: RowMoveSweeper
    store: RowStore

    async def move(self, request: pb.MoveRowRequest, purpose: str = "relocation", seconds: float = 10):
        deadline = asyncio.get_running_loop().time() + seconds
        return await self.mover.move(request, CallContext(deadline, purpose))

    async def sweep(self) -> None:
        """Sweeps whatever there is, however young."""
        await self.sweeper.sweep(timedelta(), timedelta())


@asynccontextmanager
async def conductor(site: Site, idc: str, hold: float = 1.0) -> AsyncIterator[Conductor]:
    view = site[idc].gateway.view
    async with Database.open(site.databases[idc], size=4) as database:
        store = RowStore(database)
        peers = Peers(idc, view, PeerSettings())
        homes = FaultyHomes(idc, RowReceiver(idc, view, store.moves), peers)
        mover = RowMover(idc, view, store.moves, homes, crossings=Crossings(), hold_timeout=timedelta(seconds=hold))
        try:
            yield Conductor(mover, homes, RowMoveSweeper(view, store.moves, homes), store)
        finally:
            await mover.drain()
            await peers.close()
