"""Writes every place through the SDK, in batches, a few at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.client import Put, Receipt
from regiongate.demo.places import DATASET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.client import Client
    from regiongate.demo.places import Place

BATCH_ROWS = 500
BATCHES_IN_FLIGHT = 2


async def write_places(client: Client, places: Sequence[Place], on_progress: Callable[[int], None]) -> None:
    """Writes all places; calls `on_progress` with the number of rows of each batch that is durable.

    Raises:
        RegiongateError: What the first row that failed failed with.
    """
    writes = [Put(place.region_code, place.key, place.values) for place in places]
    batches = iter([writes[start : start + BATCH_ROWS] for start in range(0, len(writes), BATCH_ROWS)])

    async def worker() -> None:
        for batch in batches:
            results = await client.batch_write(DATASET, batch, timeout=60)
            for result in results:
                if not isinstance(result, Receipt):
                    raise result
            on_progress(len(batch))

    async with asyncio.TaskGroup() as group:
        for _ in range(BATCHES_IN_FLIGHT):
            group.create_task(worker())
