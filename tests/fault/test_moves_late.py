"""Who was asleep while a shard moved, and wakes when it has another owner, changes nothing (laws L2 to L4)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

from policy.errors import RegiongateError
from tests.support.extra_gateway import extra_gateway
from tests.support.law_stack import calling, until
from tests.support.move_points import all_held, points
from tests.support.move_stack import PATIENCE, SHARDS, keys_of

if TYPE_CHECKING:
    from tests.support.move_process import SteeredController
    from tests.support.move_stack import MoveStack


async def test_law_l2_a_controller_that_wakes_after_all_has_moved_on_changes_nothing(moves: MoveStack) -> None:
    """It stands before, in and after every step; meanwhile another one brings all shards there, and back again."""
    source, target = await moves.ends()
    before = await moves.shard_records()
    async with moves.load("sleeper") as workload, moves.controller(*points()) as sleeper:
        await moves.order(target)
        await all_held(moves, sleeper)
        sleeper.send(SIGSTOP)
        async with moves.controller():
            await moves.rest()
            await moves.order(source)
            await moves.rest()
            at_rest = await moves.shard_records()
            # Its orders are there when it wakes, before it can notice that it leads no more.
            sleeper.go()
            sleeper.send(SIGCONT)
            await until(partial(_has_passed, sleeper), PATIENCE, "the sleeper does not go on")
            await workload.progress(200)
            assert await moves.shard_records() == at_rest
    for shard in range(SHARDS):
        old, new = before["DE", shard], at_rest["DE", shard]
        assert (new.owner, new.epoch, new.attempt) == (source, old.epoch + 2, old.attempt + 2)


async def test_laws_l2_to_l4_survive_an_old_source_that_wakes_after_the_switch(moves: MoveStack) -> None:
    """Some writes it had sent to its database before it fell asleep, others it finds in its socket when it wakes."""
    source, target = await moves.ends()
    early, late = keys_of("early", 1), keys_of("late", 1)
    async with (
        extra_gateway(moves, source) as awake,
        calling(moves.stack.gateway(source)) as old,
        AsyncExitStack() as sleep,
    ):
        for key in (*early, *late):
            await old.put("DE", key, 1, timeout=PATIENCE)
        async with moves.database(source) as connection, connection.transaction():
            await connection.execute("LOCK TABLE rows_customers IN SHARE MODE")
            sent = [asyncio.ensure_future(old.put("DE", key, 2, timeout=2 * PATIENCE)) for key in early]
            await until(partial(_is_waited_for, moves, source), PATIENCE, "no write reaches the database")
            await sleep.enter_async_context(moves.asleep(f"gateway-{source}"))
        found = [asyncio.ensure_future(old.put("DE", key, 2, timeout=2 * PATIENCE)) for key in late]
        async with moves.load("old-source", doors=(awake.address, target, "sin")) as workload, moves.controller():
            await moves.order(target)
            await moves.rest()
            at_rest = await moves.shard_records()
            await sleep.aclose()
            await workload.progress(100)
        outcomes = dict(zip((*early, *late), await asyncio.gather(*sent, *found, return_exceptions=True), strict=True))
        assert await moves.shard_records() == at_rest
    stored = {row.key: row for row in await moves.check_rest()}
    for key, outcome in outcomes.items():
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, RegiongateError), outcome
        else:
            assert (stored[key].idc, stored[key].spend, stored[key].seq) == (target, 2, outcome)
    # What the database had taken in went along, whether or not the sleeper still told of it.
    assert any(stored[key].spend == 2 for key in early)


async def _has_passed(sleeper: SteeredController) -> bool:
    return bool(sleeper.passed)


async def _is_waited_for(moves: MoveStack, idc: str) -> bool:
    async with moves.database(idc) as connection:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
