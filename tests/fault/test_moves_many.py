"""Many moves under many clients: nobody sees an error, and no order of events explains less than all that was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.move_stack import SHARDS

if TYPE_CHECKING:
    from tests.support.move_stack import MoveStack

ROUNDS = 4
CLIENTS = 32


async def test_64_moves_under_32_clients_cost_no_client_an_error(moves: MoveStack) -> None:
    ends = await moves.ends()
    stalls: list[float] = []
    async with moves.load("many", workers=CLIENTS) as workload, moves.controller(moves_per_pair=4, moves_per_idc=8):
        for number in range(ROUNDS):
            rollout = await moves.order(ends[(number + 1) % 2])
            await moves.rest()
            stalls += [move.stall_ms for move in (await moves.movements(rollout)).values()]
    assert len(stalls) == ROUNDS * SHARDS
    assert not workload.errors
    assert await moves.home() == ends[0]
    print(
        f"{workload.done} operations; stalls of writes: median {sorted(stalls)[len(stalls) // 2]:.0f} ms,"
        f" longest {max(stalls):.0f} ms"
    )
