from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from rowstore.moving.connections import MAX_BULK
from tests.support.row_databases import CUSTOMERS, STEP, put

if TYPE_CHECKING:
    from tests.support.row_databases import MovePair


async def test_the_last_round_waits_for_no_bulk_copy(pair: MovePair) -> None:
    await pair.source.store.write(CUSTOMERS, [put(f"k{number}", {"spend": number}) for number in range(10)])
    await pair.sender.begin_export(STEP)
    await pair.copy()
    async with AsyncExitStack() as bulk:
        for mover in (pair.sender, pair.receiver):
            for _ in range(MAX_BULK):
                await bulk.enter_async_context(mover._connections.take(is_urgent=False))
        progress = await asyncio.wait_for(pair.close_and_copy(), 5)
    assert progress.is_done
    await pair.receiver.open(STEP)
    assert await pair.target.contents() == await pair.source.contents()
