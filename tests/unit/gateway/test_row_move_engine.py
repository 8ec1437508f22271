"""What the engine makes of a row that is on its way here: it waits for it, and says so when that takes too long."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from gateway.engine import Engine
from gateway.limits import EngineSettings, PeerSettings
from gateway.operations import Action, CallContext, RowOperation
from gateway.peers import Peers
from policy.errors import RowMoving, RowNotFound
from rowstore.model import Arriving, Missing
from runtime.telemetry.tracing import Tracing
from tests.support import routing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.model import Dataset
    from rowstore.model import ReadKey, ReadOutcome, RowWrite, WriteOutcome

LAW = routing.policy()
CUSTOMERS = LAW.datasets["customers"]


class ArrivingRows:
    """A row that is on its way for so many reads."""

    def __init__(self, reads: int) -> None:
        self.reads = reads

    async def read(self, _dataset: Dataset, keys: Sequence[ReadKey]) -> list[ReadOutcome]:
        self.reads -= 1
        return [Missing() if self.reads < 0 or key.key == "other" else Arriving() for key in keys]

    async def write(self, _dataset: Dataset, writes: Sequence[RowWrite]) -> list[WriteOutcome]:
        return [Arriving() for _ in writes]


async def outcomes(rows: ArrivingRows, *operations: RowOperation, ingress_idc: str = ""):
    view = routing.HandView(routing.table(LAW))
    settings = EngineSettings(hold_timeout=timedelta(seconds=0.2))
    peers, tracing = Peers("fra", view, PeerSettings()), Tracing("gateway", "fra", 0.0, None)
    engine = Engine("fra", view, rows, peers, tracing, settings=settings)
    context = CallContext(asyncio.get_running_loop().time() + 10, ingress_idc=ingress_idc)
    return await engine.execute(operations, context)


def get(key: str) -> RowOperation:
    return RowOperation(Action.GET, CUSTOMERS, "DE", key)


async def test_a_read_waits_until_it_is_known_whether_the_row_has_come() -> None:
    (outcome,) = await outcomes(ArrivingRows(3), get("k"))
    assert isinstance(outcome.error, RowNotFound)


async def test_a_wait_that_is_too_long_says_that_the_row_is_moving_and_delays_no_other_row() -> None:
    insert = RowOperation(Action.PUT, CUSTOMERS, "DE", "k", values={}, if_version=0)
    for ingress_idc in ("", "ams"):
        moving, other, writing = await outcomes(
            ArrivingRows(10**6), get("k"), get("other"), insert, ingress_idc=ingress_idc
        )
        assert isinstance(moving.error, RowMoving)
        assert isinstance(other.error, RowNotFound)
        assert isinstance(writing.error, RowMoving)
