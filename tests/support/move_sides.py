"""One gateway's part in a move, with a mover, a source and a caller in the test's hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from gateway.move_checks import AT_TARGET, MoveChecks, Step
from gateway.operations import CallContext
from gateway.shard_export import ShardExports
from gateway.shard_import import ShardImports
from gateway.shard_moves import ShardMoves
from policy import move
from policy.model import Phase
from policy.move import MoveEvent
from policy.records import ShardRecord
from regiongate.v1 import shard_service_pb2 as pb
from rowstore.fences import FenceState
from rowstore.model import FenceMode
from rowstore.moving.model import (
    End,
    ImportProgress,
    PurgeProof,
)
from tests.support import routing

LAW = routing.policy()
NO_UK = routing.policy(routing.POLICY.replace("jurisdictions: [EU, UK]", "jurisdictions: [EU]"), 2)
TIME = datetime(2026, 11, 25, 12, 0, 0, 123456, UTC)


def way() -> dict[Phase, ShardRecord]:
    """The record of DE/0 in each phase of its first move, from fra to lon."""
    copying = move.start(ShardRecord("fra", 1, Phase.SERVING, 1), "lon", "r", "")
    draining = move.advance(copying, MoveEvent.COPIED)
    closing = move.advance(draining, MoveEvent.DRAINED)
    opening = move.switch(closing, 7, "ab")
    purging = move.advance(opening, MoveEvent.OPENED)
    aborting = move.advance(closing, MoveEvent.CALLED_OFF)
    records = (copying, draining, closing, opening, purging, aborting)
    return {Phase(record.phase): record for record in records}


WAY = way()
CALLED_OFF = move.advance(WAY[Phase.ABORTING], MoveEvent.REOPENED)


def reference(**fields: object) -> pb.MoveRef:
    known = {"region_code": "DE", "shard": 0, "epoch": 1, "attempt": 1, "source_idc": "fra", "target_idc": "lon"}
    return pb.MoveRef(**known | fields)


class NotingMover:
    """Notes the steps; imports what it is given."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.parts: list[object] = []
        self.loaded: list[object] = []
        self.failures: list[BaseException] = []
        self.begun = asyncio.Event()

    def __getattr__(self, name: str):
        async def step(step, *_):
            self.steps.append(name)
            return FenceState("DE", 0, 1, FenceMode.SERVING, 5, None)

        return step

    async def purge(self, _step, expected):
        self.steps.append(f"purge {expected.rows if expected else 'all'}")
        return PurgeProof({"rows_customers": 7}, 0)

    async def export(self, *_, **__):
        for part in self.parts:
            yield part

    async def begin_import(self, *_, **__):
        self.steps.append("begin_import")
        return ImportProgress(len(self.loaded), None, 9, len(self.loaded), 0)

    async def import_parts(self, _step, parts, **_):
        self.begun.set()
        if self.failures:
            raise self.failures.pop(0)
        async for part in parts:
            self.loaded.append(part)
            yield ImportProgress(len(self.loaded), None, 9, len(self.loaded), 10, is_done=isinstance(part, End))


class HandSource:
    """Gives the parts that the test puts in."""

    def __init__(self) -> None:
        self.parts: asyncio.Queue[object] = asyncio.Queue()

    async def export(self, *_, **__):
        while True:
            yield await self.parts.get()


class HandCall:
    """Collects what is sent."""

    def __init__(self, ingress: str = "", timeout: float = 0.1) -> None:
        self.context = CallContext(asyncio.get_running_loop().time() + timeout, ingress_idc=ingress)
        self.sent: list = []

    async def send(self, message) -> None:
        self.sent.append(message)

    def describe(self, attributes) -> None:
        pass


class Side:
    """One IDC's gateway."""

    def __init__(self, idc: str, record: ShardRecord) -> None:
        self.view = routing.HandView(routing.table(LAW))
        self.show(record)
        self.mover = NotingMover()
        self.source = HandSource()
        checks = MoveChecks(idc, self.view)
        self.steps = ShardMoves(idc, checks, self.mover)
        self.exports = ShardExports(checks, self.mover)
        self.imports = ShardImports(idc, checks, self.mover, self.source)

    def show(self, record: ShardRecord, law=None) -> None:
        self.view.patch(store_revision=self.view.table.store_revision + 1, law=law, shards=[("DE", 0, record)])

    async def take(self, step: Step, move: pb.MoveRef | None = None, timeout: float = 0.02):
        """One step."""
        deadline = asyncio.get_running_loop().time() + timeout
        asked = move or reference()
        call = HandCall("lon", timeout)
        if step in (Step.IMPORT, Step.FINAL_IMPORT):
            self.source.parts.put_nowait(End(9, None))
            closed = 9 if step is Step.FINAL_IMPORT else None
            return await self.imports.run(pb.ImportShardRequest(move=asked, closed_at_seq=closed), call)
        if step in (Step.EXPORT, Step.FINAL_EXPORT):
            return await self.exports.export(
                pb.ExportShardRequest(move=asked, is_final=step is Step.FINAL_EXPORT), call
            )
        if step is Step.PURGE:
            expected = pb.ShardDigest(rows=7, digest="ab")
            return await self.steps.purge(pb.PurgeShardRequest(move=asked, expected=expected), deadline)
        return await self.steps.take(step, asked, deadline)


def side_of(step: Step, record: ShardRecord) -> Side:
    return Side("lon" if step in AT_TARGET else "fra", record)
