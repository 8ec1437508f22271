"""Many rows in few calls: split by owner, sent side by side, and only what failed for a while sent again.

The rows of one shard always travel in one call, in the caller's order. A retry repeats all of a shard's writes, also
those that were done: under the same request_id they return their first result, and the store knows the set again. Of
reads only those that failed are repeated.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from gateway.client.failures import Failed, can_retry, persist
from policy.errors import NotOwnedHere, RegiongateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from gateway.client.routes import Routes

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Batch(Generic[_Item, _Result]):
    """Items of one batch on their way to one outcome each.

    Args:
        routes: Where items go.
        items: What is sent, in the caller's order.
        places: RegionCode and key of each item.
        send: Sends some items to an IDC until a time; results or failures in their order; raises `Failed`.
        repeats_shards: Whether a retry brings all items of a shard, as writes must.
    """

    def __init__(
        self,
        routes: Routes,
        items: Sequence[_Item],
        places: Sequence[tuple[str, str | int]],
        send: Callable[[str, list[_Item], float], Awaitable[list[_Result | Failed]]],
        *,
        repeats_shards: bool,
    ) -> None:
        self._routes = routes
        self._items = items
        self._places = places
        self._send = send
        self._repeats_shards = repeats_shards
        self._outcomes: list[_Result | RegiongateError | None] = [None] * len(items)
        self._open = list(range(len(items)))

    async def run(self, deadline: float, attempt_timeout: float) -> list[_Result | RegiongateError]:
        """Sends until every item has an outcome that stays, or there is no time left."""
        try:
            await persist(self._attempt, deadline, attempt_timeout)
        except RegiongateError as error:
            for index in self._open:
                if self._outcomes[index] is None:
                    self._outcomes[index] = error
        return cast("list[_Result | RegiongateError]", self._outcomes)

    async def _attempt(self, until: float) -> None:
        by_hop = self._routes.by_next_hop(self._places, self._open)
        failures = await asyncio.gather(*(self._send_part(hop, part, until) for hop, part in by_hop.items()))
        failed = [failure for part in failures for failure in part.items()]
        if not failed:
            self._open = []
            return
        again = {index for index, failure in failed if can_retry(failure)}
        if self._repeats_shards:
            shards = {self._shard(index) for index in again}
            again = {index for index in self._open if self._shard(index) in shards}
        self._open = sorted(again)
        if self._open:
            raise max((failure for _, failure in failed if can_retry(failure)), key=lambda f: f.retry_after)

    def _shard(self, index: int) -> tuple[str, int]:
        region_code, key = self._places[index]
        return region_code, self._routes.shard_of(region_code, key)

    async def _send_part(self, hop: str, part: list[int], until: float) -> dict[int, Failed]:
        """Sends the items of one IDC and notes their outcomes; returns the failures."""
        failures: dict[int, Failed] = {}
        try:
            results = await self._send(hop, [self._items[index] for index in part], until)
            if len(results) != len(part):
                raise Failed(RegiongateError("the gateway's answer has another number of results than was asked for"))
        except Failed as failed:
            failures = dict.fromkeys(part, failed)
        else:
            outcomes = self._outcomes
            for index, result in zip(part, results, strict=True):
                if isinstance(result, Failed):
                    failures[index] = result
                else:
                    outcomes[index] = result
        for index, failed in failures.items():
            if isinstance(failed.error, NotOwnedHere):
                self._routes.learn(*self._places[index], failed.error.owner_idc, failed.error.endpoints)
            if self._outcomes[index] is None or isinstance(self._outcomes[index], RegiongateError):
                self._outcomes[index] = failed.error
        return failures
