"""Moves in trouble: cut links, sources and targets that are gone. They wait, say why, hold up no other, and end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from policy.model import Phase
from tests.support.extra_gateway import extra_gateway
from tests.support.law_stack import until
from tests.support.move_points import all_held, points
from tests.support.move_stack import PATIENCE, SHARDS
from tests.support.ports import free_port
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.move_stack import MoveStack

BULK = 60_000
"""Rows: three slices of a copy."""


async def test_a_copy_whose_link_is_cut_in_the_middle_goes_on_from_there(moves: MoveStack) -> None:
    source, target = await moves.ends()
    shard, peer_port = 13, free_port()
    attempts = (await moves.shard_records())["DE", shard].attempt
    async with bulk(moves, source, shard), TcpProxy(peer_port) as link:
        behind = {"peer_listen": f"127.0.0.1:{peer_port}", "peer_advertise": link.address}
        async with extra_gateway(moves, source, **behind) as gateway, moves.asleep(f"gateway-{source}"):
            await until(partial(_is_alone, moves, source, gateway.name), PATIENCE, "the other gateway does not go")
            async with moves.load("cut", doors=(gateway.address,)) as workload, moves.controller():
                link.delay = 0.1
                rollout = await moves.move_shard(shard, target)
                await until(partial(_is_half_copied, moves, target, shard), PATIENCE, "nothing is copied")
                await link.cut()
                await until(partial(_says, moves, rollout, source), PATIENCE, "nothing is said of the trouble")
                assert (await moves.phases())[shard] == Phase.COPYING
                await workload.progress(100)
                link.delay = 0
                await link.heal()
                await moves.rest()
            movement = (await moves.movements(rollout))[shard]
    assert movement.attempt == attempts + 1
    assert BULK <= movement.rows < 1.3 * BULK, "it has begun anew"


async def test_a_source_that_is_gone_is_waited_for_in_every_phase(moves: MoveStack) -> None:
    source, target = await moves.ends()
    async with moves.load("gone") as workload, moves.controller(*points()) as controller:
        rollout = await moves.order(target)
        await all_held(moves, controller)
        async with moves.down(f"gateway-{source}"):
            await until(partial(_is_gone, moves, source), PATIENCE, "its lease does not end")
            controller.go()
            await until(partial(_says, moves, rollout, f"{source}: NO_GATEWAY"), PATIENCE, "nobody says so")
            assert (await moves.rollouts())[rollout].state == "running"
        await moves.rest()
        await workload.progress(100)
    assert await moves.home() == target


async def test_a_target_whose_database_is_down_at_the_start_is_waited_for(moves: MoveStack) -> None:
    source, target = await moves.ends()
    async with moves.load("down", doors=(source, "sin")) as workload, moves.controller():
        async with moves.down(f"postgres-{target}"):
            rollout = await moves.order(target, door=source)
            await until(partial(_says, moves, rollout, f"{target}: "), PATIENCE, "nobody says so")
            assert set((await moves.phases()).values()) <= {Phase.COPYING, Phase.SERVING}
            await workload.progress(100)
        await moves.rest()
    assert await moves.home() == target


async def test_moves_that_are_stuck_hold_up_no_other(moves: MoveStack) -> None:
    source, target = await moves.ends()
    stuck = {2, 3}
    options = {"moves_per_pair": len(stuck), "moves_per_idc": len(stuck), "open_timeout": 1}
    async with moves.controller(**options):
        async with moves.database(source) as connection, connection.transaction():
            await connection.execute(
                "SELECT FROM shard_fences WHERE region_code = 'DE' AND shard = ANY($1) FOR UPDATE", list(stuck)
            )
            await moves.order(target)
            await until(partial(_have_arrived, moves, target, SHARDS - len(stuck)), PATIENCE, "others are held up")
            records = await moves.shard_records()
            assert {records["DE", shard].owner for shard in stuck} == {source}
        await moves.rest()
    assert await moves.home() == target


@asynccontextmanager
async def bulk(moves: MoveStack, idc: str, shard: int) -> AsyncIterator[None]:
    """Many rows in one shard, put there past all gateways, and taken away again."""
    await moves.fill(idc, shard, BULK)
    try:
        yield
    finally:
        await moves.clear(shard)


async def _is_alone(moves: MoveStack, idc: str, gateway: str) -> bool:
    return [record.gateway for record in await moves.gateway_records(idc)] == [gateway]


async def _is_gone(moves: MoveStack, idc: str) -> bool:
    return not await moves.gateway_records(idc)


async def _says(moves: MoveStack, rollout: str, words: str) -> bool:
    """Whether the rollout's note speaks of trouble there."""
    note = (await moves.rollouts())[rollout].note
    return "in trouble" in note and words in note


async def _is_half_copied(moves: MoveStack, idc: str, shard: int) -> bool:
    async with moves.database(idc) as connection:
        sql = "SELECT rows FROM shard_imports WHERE region_code = 'DE' AND shard = $1"
        return 0 < (await connection.fetchval(sql, shard) or 0) < BULK


async def _have_arrived(moves: MoveStack, idc: str, shards: int) -> bool:
    records = (await moves.shard_records()).items()
    there = [it for (code, _), it in records if code == "DE" and it.owner == idc and it.phase == Phase.SERVING]
    return len(there) == shards
