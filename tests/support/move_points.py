"""Where moves are held so that one stands in every phase: a shard for each point, the others move on.

Points are those of `tests.support.move_controller`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.model import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.move_process import SteeredController
    from tests.support.move_stack import MoveStack

BEFORE_SWITCH: Mapping[int, tuple[str, Phase]] = {
    0: ("after BeginExport", Phase.COPYING),
    1: ("during ImportShard", Phase.COPYING),
    2: ("before DrainShard", Phase.DRAINING),
    3: ("after DrainShard", Phase.DRAINING),
    4: ("before CloseShard", Phase.CLOSING),
    5: ("after CloseShard", Phase.CLOSING),
    6: ("before Switch", Phase.CLOSING),
}
AFTER_SWITCH: Mapping[int, tuple[str, Phase]] = {
    7: ("after Switch", Phase.OPENING),
    8: ("before OpenShard", Phase.OPENING),
    9: ("after OpenShard", Phase.OPENING),
    10: ("before PurgeShard", Phase.PURGING),
    11: ("after PurgeShard", Phase.PURGING),
}
EVERYWHERE: Mapping[int, tuple[str, Phase]] = {**BEFORE_SWITCH, **AFTER_SWITCH}
"""Shard -> where its move is held, and the phase that its record has there."""


def points(held: Mapping[int, tuple[str, Phase]] = EVERYWHERE) -> tuple[str, ...]:
    """The points as a controller is told them."""
    return tuple(f"{point} DE/{shard}" for shard, (point, _) in held.items())


async def all_held(moves: MoveStack, controller: SteeredController) -> None:
    """Waits until every move stands where it should."""
    await controller.held()
    phases = await moves.phases()
    expected = {shard: str(phase) for shard, (_, phase) in EVERYWHERE.items()}
    assert {shard: phases[shard] for shard in EVERYWHERE} == expected
