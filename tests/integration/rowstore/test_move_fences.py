"""The steps of a move on the fences: what passes, what does not, and that a late one changes nothing."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest

from policy.errors import StaleAttempt
from rowstore.model import FenceMiss, FenceMode, ShardEpoch, Written
from rowstore.moving import MoveStep
from rowstore.moving.digest import NOTHING
from tests.support.row_databases import CUSTOMERS, STEP, MovePair, get, put

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rowstore.moving import Mover

SERVING, DRAINING, CLOSED, IMPORTING = "serving", "draining", "closed", "importing"
EPOCH, ATTEMPT = 5, 7
"""Of the step: a source's fence should be at this epoch, a target's at the next one."""


class Law(NamedTuple):
    """Where a step leads, and from where."""

    take: Callable[[Mover, MoveStep], Awaitable[object]]
    modes: set[str | None]
    result: str
    epochs: set[int]
    attempts: set[int]


OLDER_OR_SAME = {ATTEMPT - 1, ATTEMPT}
LAWS = {
    "begin_export": Law(lambda m, s: m.begin_export(s), {SERVING}, SERVING, {EPOCH}, OLDER_OR_SAME),
    "drain": Law(lambda m, s: m.drain(s), {SERVING, DRAINING}, DRAINING, {EPOCH}, {ATTEMPT}),
    "close": Law(lambda m, s: m.close(s), {DRAINING, CLOSED}, CLOSED, {EPOCH}, {ATTEMPT}),
    "reopen": Law(lambda m, s: m.reopen(s), {SERVING, DRAINING, CLOSED}, SERVING, {EPOCH}, OLDER_OR_SAME),
    "purge at the source": Law(lambda m, s: m.purge(s, NOTHING), {CLOSED}, CLOSED, {EPOCH}, OLDER_OR_SAME),
    "begin_import": Law(
        lambda m, s: m.begin_import(s), {CLOSED, IMPORTING, None}, IMPORTING, {EPOCH, EPOCH + 1}, OLDER_OR_SAME
    ),
    "open": Law(lambda m, s: m.open(s), {IMPORTING}, SERVING, {EPOCH + 1}, {ATTEMPT}),
    "purge at the target": Law(
        lambda m, s: m.purge(s, None), {CLOSED, IMPORTING, None}, CLOSED, {EPOCH, EPOCH + 1}, OLDER_OR_SAME
    ),
}
FENCES = (
    None,
    *product((SERVING, DRAINING, CLOSED, IMPORTING), (EPOCH, EPOCH + 1, EPOCH + 2), range(ATTEMPT - 1, ATTEMPT + 2)),
)


async def set_up(pair: MovePair, fence: tuple[str, int, int] | None) -> None:
    hand = pair.source.hand
    await hand.execute("DELETE FROM shard_fences; DELETE FROM shard_imports; DELETE FROM shard_purges")
    if fence is not None:
        await hand.execute(
            "INSERT INTO shard_fences (region_code, shard, mode, epoch, attempt) VALUES ('DE', 0, $1, $2, $3)", *fence
        )
        await hand.execute(
            "INSERT INTO shard_imports (region_code, shard, epoch, attempt, digest, is_final)"
            " VALUES ('DE', 0, $1, $2, $3, true)",
            *fence[1:],
            NOTHING.digest,
        )


@pytest.mark.parametrize("name", LAWS)
async def test_each_step_passes_where_the_law_says_and_changes_nothing_elsewhere(pair: MovePair, name: str) -> None:
    law, step = LAWS[name], MoveStep("DE", 0, EPOCH, ATTEMPT)
    at_target = name in ("begin_import", "open", "purge at the target")
    for fence in FENCES:
        await set_up(pair, fence)
        is_done = name == "open" and fence is not None and fence[:2] == (SERVING, EPOCH + 1)
        is_legal = None in law.modes if fence is None else fence[0] in law.modes
        is_legal = is_legal and (fence is None or (fence[1] in law.epochs and fence[2] in law.attempts))
        if is_legal or is_done:
            for _ in range(2):
                await law.take(pair.sender, step)
                expected = (law.result, EPOCH + at_target, fence[2] if is_done else ATTEMPT)
                assert await pair.source.fence() == expected, fence
        else:
            with pytest.raises(StaleAttempt):
                await law.take(pair.sender, step)
            assert await pair.source.fence() == fence


async def test_law_l2_late_steps_of_an_attempt_that_was_called_off_change_nothing(pair: MovePair) -> None:
    called_off = STEP._replace(attempt=2)
    await pair.sender.begin_export(STEP)
    await pair.sender.drain(STEP)
    await pair.sender.reopen(called_off)
    for late in (pair.sender.drain, pair.sender.close, pair.sender.begin_export, pair.sender.reopen):
        with pytest.raises(StaleAttempt):
            await late(STEP)
    assert isinstance((await pair.source.store.write(CUSTOMERS, [put("k")]))[0], Written)


async def test_law_l2_a_draining_shard_is_read_and_a_closed_one_is_not(pair: MovePair) -> None:
    await pair.source.store.write(CUSTOMERS, [put("k")])
    await pair.sender.begin_export(STEP)
    await pair.sender.drain(STEP)
    assert (await pair.source.store.write(CUSTOMERS, [put("k")]))[0] == FenceMiss(FenceMode.DRAINING, 1)
    assert not isinstance((await pair.source.store.read(CUSTOMERS, [get("k")]))[0], FenceMiss)
    fence = await pair.sender.close(STEP)
    assert fence.last_seq == 1
    assert (await pair.source.store.read(CUSTOMERS, [get("k")]))[0] == FenceMiss(FenceMode.CLOSED, 1)


async def test_law_l2_a_write_that_waited_behind_a_drain_is_judged_by_it(pair: MovePair) -> None:
    await pair.sender.begin_export(STEP)
    async with pair.source.holding_fence():
        drain = asyncio.create_task(pair.sender.drain(STEP))
        await pair.source.until_waiting(1)
        write = asyncio.create_task(pair.source.store.write(CUSTOMERS, [put("k")]))
        await pair.source.until_waiting(2)
    assert (await drain).last_seq == 0
    assert (await write)[0] == FenceMiss(FenceMode.DRAINING, 1)


async def test_an_import_that_is_not_final_does_not_open(pair: MovePair) -> None:
    await pair.source.store.write(CUSTOMERS, [put("k")])
    await pair.sender.begin_export(STEP)
    await pair.copy()
    with pytest.raises(StaleAttempt):
        await pair.receiver.open(STEP)
    await pair.close_and_copy()
    assert (await pair.receiver.open(STEP)).mode is FenceMode.SERVING
    assert (await pair.receiver.open(STEP)).epoch == 2


async def test_law_l2_a_late_order_to_open_does_not_bring_a_purged_shard_back(pair: MovePair) -> None:
    await pair.source.store.write(CUSTOMERS, [put("k")])
    progress = await pair.move()
    await pair.sender.purge(STEP, progress.digest)
    (fence,) = await pair.source.store.fences.open([ShardEpoch("DE", 0, 1)])
    assert fence.mode is FenceMode.CLOSED
    assert isinstance((await pair.source.store.write(CUSTOMERS, [put("k")]))[0], FenceMiss)


async def test_a_purge_where_nothing_came_yet_refuses_a_late_beginning(pair: MovePair) -> None:
    proof = await pair.receiver.purge(STEP._replace(attempt=2), None)
    assert proof.remaining == 0
    with pytest.raises(StaleAttempt):
        await pair.receiver.begin_import(STEP)
    await pair.receiver.begin_import(STEP._replace(attempt=3))
