"""A controller that stops at the points of a move that a test names: `python -m tests.support.move_controller`.

The product has no switch for this: the launcher puts stopping substitutes in the place of what calls the IDCs and of
what writes the switch, in its own process, and then becomes the controller as `policy.controller.main` makes it.

A point is `before`, `during` (an import's first answer) or `after`, a step's name, and a shard, as in
`after CloseShard DE/3`. Steps are those of the ShardService, `ImportLast` for the import from a closed source, and
`Switch`. The points come as arguments. Told on stdout: `held POINT`, `passed POINT`. On stdin: `go POINT`, or `hold
POINT` for one more. A point that begins with `freeze` holds the whole process: nothing else of it goes on either.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from policy.controller import drive, main
from policy.controller.ledger import Ledger
from policy.controller.peers import PeerCalls
from policy.controller.settings import ControllerSettings
from tests.support.unguarded import GUARDS, take

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from regiongate.v1 import shard_service_pb2 as pb

FREEZE = "freeze "


class Stops:
    """Where to stop, and who stands there."""

    def __init__(self) -> None:
        self._points: set[str] = set()
        self._gates: dict[str, threading.Event] = {}

    def add(self, point: str) -> None:
        """Stop there once."""
        self._gates[point] = threading.Event()
        self._points.add(point)

    def go(self, point: str) -> None:
        """Whoever stands there goes on."""
        self._gates[point].set()

    async def reach(self, when: str, step: str, shard: str) -> None:
        """Stops if a test wants it."""
        point = f"{when} {step} {shard}"
        for wanted in self._points & {point, f"{FREEZE}{point}"}:
            self._points.discard(wanted)
            tell(f"held {wanted}")
            gate = self._gates[wanted]
            if wanted.startswith(FREEZE):
                gate.wait()
            while not gate.is_set():  # noqa: ASYNC110 (the event is set by another thread)
                await asyncio.sleep(0.005)
            tell(f"passed {wanted}")


STOPS = Stops()


class StoppingCalls(PeerCalls):
    """Stops before and after the steps of a move."""

    async def step(self, idc: str, peers: Sequence[str], name: str, request: Any, **options: Any) -> Any:
        """One step; the stop is not in its time."""
        shard = shard_of_move(request.move)
        await STOPS.reach("before", name, shard)
        answer = await super().step(idc, peers, name, request, **options)
        await STOPS.reach("after", name, shard)
        return answer

    @asynccontextmanager
    async def importing(
        self, idc: str, peers: Sequence[str], request: pb.ImportShardRequest, **options: Any
    ) -> AsyncGenerator[AsyncIterator[pb.ImportShardResponse]]:
        """An import, with a stop at its first answer and at its last."""
        name = "ImportLast" if request.HasField("closed_at_seq") else "ImportShard"
        shard = shard_of_move(request.move)
        await STOPS.reach("before", name, shard)
        async with super().importing(idc, peers, request, **options) as answers:
            yield self._stopping(answers, name, shard)

    async def _stopping(
        self, answers: AsyncIterator[pb.ImportShardResponse], name: str, shard: str
    ) -> AsyncIterator[pb.ImportShardResponse]:
        async for answer in answers:
            await STOPS.reach("during", name, shard)
            if answer.is_done:
                await STOPS.reach("after", name, shard)
            yield answer


class StoppingLedger(Ledger):
    """Stops when all is decided for the switch, and when it has been written."""

    async def write_guarded(self, *arguments: Any, **options: Any) -> None:
        """The switch."""
        shard = f"{self._shard[0]}/{self._shard[1]}"
        await STOPS.reach("before", "Switch", shard)
        await super().write_guarded(*arguments, **options)
        await STOPS.reach("after", "Switch", shard)


def shard_of_move(move: pb.MoveRef) -> str:
    """The shard as points name it."""
    return f"{move.region_code}/{move.shard}"


def tell(line: str) -> None:
    """One line for the test, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def listen() -> None:
    """Takes the test's orders until it closes stdin."""
    for line in sys.stdin:
        order, _, point = line.strip().partition(" ")
        {"hold": STOPS.add, "go": STOPS.go}[order](point)


def run() -> int:
    """Takes guards away, sets the first points, and becomes a controller."""
    _, without, *points = sys.argv
    for name in without.split(","):
        GUARDS[name]()
    for point in points:
        STOPS.add(point)
    assert take(main, "PeerCalls", StoppingCalls) is PeerCalls
    assert take(drive, "Ledger", StoppingLedger) is Ledger
    threading.Thread(target=listen, daemon=True).start()
    return main.run(ControllerSettings())  # pyright: ignore[reportCallIssue]: settings come from the environment


if __name__ == "__main__":
    sys.exit(run())
