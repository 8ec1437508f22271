"""Group commit: many callers' rows share one statement while the one before is in flight.

When nothing is in flight a statement starts in the same turn of the event loop: an idle gateway adds no wait. Otherwise
what arrives gathers, and goes together when a statement has ended. With a pace, callers that come at the same time
gather a little longer: a statement costs more than a row. A caller alone never waits for that, nor do many rows.

Invariants:
- A group (the rows of one call) is never split over statements: the writes of one request_id are remembered together.
- No key twice in one write statement, nor the request_id of two groups, nor two kinds of conditions: the second group
  waits for the next one.
- A statement that fails for what one group brought fails that group alone.
- What has not been begun when its caller has gone, or its guard no longer holds (law L6), is not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from gateway.limits import Sweep
from policy.errors import DeadlineExceeded, RegiongateError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rowstore.model import RowWrite

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Superseded:
    """The group was not begun: the verdict that sent it here no longer stands."""


SUPERSEDED: Final = Superseded()

ENOUGH_ROWS: Final = 16
"""So many share the cost of a statement well enough: they do not wait for more."""

COMPANY: Final = 3
"""So many callers in one statement come together: they gain by the pace, two would only wait for each other."""

COMPANY_PACES: Final = 10
"""For so many paces after that."""

Settled = list[Outcome] | RegiongateError | Superseded
"""How a group ends: an outcome for each of its items, or one error for all of them."""


class Group(Generic[Item, Outcome]):
    """The rows of one call, and where their outcomes go."""

    __slots__ = ("deadline", "future", "guard", "items", "traceparents")

    def __init__(
        self,
        items: Sequence[Item],
        future: asyncio.Future[Settled[Outcome]],
        deadline: float,
        guard: Callable[[], bool] | None,
        traceparents: Sequence[str],
    ) -> None:
        self.items = items
        self.future = future
        self.deadline = deadline
        self.guard = guard
        self.traceparents = traceparents

    def settle(self, result: Settled[Outcome]) -> None:
        """Answers the caller, if it is still there."""
        if not self.future.done():
            self.future.set_result(result)


class Coalescer(Generic[Item, Outcome]):
    """The statements of one kind on one dataset."""

    def __init__(
        self,
        perform: Callable[[Sequence[Item], Sequence[str]], Awaitable[list[Outcome]]],
        *,
        in_flight: int,
        max_rows: int,
        clashes: Callable[[Sequence[Item], set[object]], bool] | None = None,
        pace: float = 0.0,
    ) -> None:
        """Starts with nothing in flight, on the loop that is running.

        Args:
            perform: Runs one statement for items and the traceparents of sampled callers; outcomes in the items' order.
            in_flight: Statements at a time.
            max_rows: Rows in one statement; a group alone may have that many and no more.
            clashes: Whether items cannot share a statement with what is in the set; adds them to it otherwise.
            pace: Seconds from one statement to the next while callers come together or one is still in flight.
        """
        self._loop = asyncio.get_running_loop()
        self._perform = perform
        self._in_flight = in_flight
        self._max_rows = max_rows
        self._clashes = clashes
        self._pace = pace
        self._waiting: deque[Group[Item, Outcome]] = deque()
        self._waiting_rows = 0
        self._performing: set[Group[Item, Outcome]] = set()
        self._runners: set[asyncio.Task[None]] = set()
        self._running = 0
        self._is_starting = False
        self._due = 0.0
        """When the pace allows the next statement, on the loop's clock."""
        self._company_until = 0.0
        """Until when callers count as coming together, on the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._sweep = Sweep(self._expire)

    def submit(
        self,
        items: Sequence[Item],
        deadline: float,
        guard: Callable[[], bool] | None = None,
        traceparents: Sequence[str] = (),
    ) -> asyncio.Future[Settled[Outcome]]:
        """Adds a group; cancelling the future takes it back if it has not been begun.

        Args:
            items: At most `max_rows`.
            deadline: On the loop's clock; after it the group ends with `DeadlineExceeded`.
            guard: Asked right before the group is begun; False ends it as `Superseded`.
            traceparents: Of the sampled among the callers.
        """
        future: asyncio.Future[Settled[Outcome]] = self._loop.create_future()
        self._waiting.append(Group(items, future, deadline, guard, traceparents))
        self._waiting_rows += len(items)
        if not self._is_starting and self._running < self._in_flight:
            self._start_in_time()
        self._sweep.wake()
        return future

    async def drain(self) -> None:
        """Waits until nothing is in flight; the pace does not matter any more."""
        while self._runners or self._timer is not None:
            if self._timer is not None:
                self._start_due()
            if self._runners:
                await asyncio.wait(self._runners)

    def _start_in_time(self) -> None:
        """Starts a statement now, or when it is due."""
        now = self._loop.time()
        is_alone = not self._running and now >= self._company_until
        if not self._pace or is_alone or self._waiting_rows >= ENOUGH_ROWS:
            self._start()
        elif self._timer is None:
            self._timer = self._loop.call_later(max(0.0, self._due - now), self._start_due)

    def _start_due(self) -> None:
        self._stop_timer()
        if self._waiting and not self._is_starting and self._running < self._in_flight:
            self._start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        # One starts at a time: what arrives in this turn of the loop goes with it, not with a statement of its own.
        self._stop_timer()
        self._is_starting = True
        self._running += 1
        runner = self._loop.create_task(self._run())
        self._runners.add(runner)
        runner.add_done_callback(self._runners.discard)

    async def _run(self) -> None:
        self._is_starting = False
        try:
            while batch := self._take():
                self._keep_pace(len(batch))
                self._performing.update(batch)
                try:
                    await self._perform_batch(batch)
                finally:
                    self._performing.difference_update(batch)
                if self._pace:
                    break  # the next one starts in time, with what arrives in this turn of the loop
        finally:
            # Not when the task is done, which is a turn later: a group that came in between would wait for nobody.
            self._running -= 1
        if batch and self._waiting and not self._is_starting:
            self._start_in_time()

    def _keep_pace(self, callers: int) -> None:
        """A statement for so many callers starts now."""
        now = self._loop.time()
        self._due = now + self._pace
        if callers >= COMPANY:
            self._company_until = now + COMPANY_PACES * self._pace

    def _take(self) -> list[Group[Item, Outcome]]:
        """The groups of the next statement, in the order in which they came as far as they can share one."""
        batch: list[Group[Item, Outcome]] = []
        passed_over: list[Group[Item, Outcome]] = []
        seen: set[object] = set()
        rows = 0
        waiting = self._waiting
        while waiting and rows < self._max_rows:
            group = waiting.popleft()
            if group.future.done():
                continue
            if group.guard is not None and not group.guard():
                group.settle(SUPERSEDED)
            elif rows + len(group.items) > self._max_rows or (self._clashes and self._clashes(group.items, seen)):
                passed_over.append(group)
                if rows + len(group.items) > self._max_rows:
                    break
            else:
                batch.append(group)
                rows += len(group.items)
        waiting.extendleft(reversed(passed_over))
        self._waiting_rows = sum(len(group.items) for group in waiting)
        return batch

    async def _perform_batch(self, batch: list[Group[Item, Outcome]]) -> None:
        try:
            await self._perform_together(batch)
        except RegiongateError as error:
            if len(batch) == 1 or isinstance(error, Unavailable | DeadlineExceeded):
                for group in batch:
                    group.settle(error)
                return
            # One group brought what the database refuses: each goes alone, so that the others do not pay for it.
            for group in batch:
                if not group.future.done():
                    await self._perform_batch([group])
        except Exception as error:  # noqa: BLE001 (the callers get it: their service logs the cause and tells INTERNAL)
            internal = RegiongateError("internal error")
            internal.__cause__ = error
            for group in batch:
                group.settle(internal)

    async def _perform_together(self, batch: list[Group[Item, Outcome]]) -> None:
        if len(batch) == 1:
            group = batch[0]
            group.settle(await self._perform(group.items, group.traceparents))
            return
        items = [item for group in batch for item in group.items]
        traceparents = [traceparent for group in batch for traceparent in group.traceparents]
        outcomes = await self._perform(items, traceparents)
        start = 0
        for group in batch:
            end = start + len(group.items)
            group.settle(outcomes[start:end])
            start = end

    def _expire(self, now: float) -> bool:
        for group in (*self._waiting, *self._performing):
            if group.deadline <= now:
                group.settle(DeadlineExceeded("the deadline passed before the database answered"))
        return bool(self._waiting or self._performing)


def write_clashes(writes: Sequence[RowWrite], seen: set[object]) -> bool:
    """Whether writes touch a row, carry a request_id, or have another kind of condition than what the set holds.

    The store runs one transaction for each kind of condition. With one kind in a statement, a statement that failed has
    written nothing, so that its groups can be tried one by one; a group of several kinds goes alone.
    """
    kinds = {_UNCONDITIONAL if write.if_version is None else _CONDITIONAL[write.if_version == 0] for write in writes}
    kind: object = kinds.pop() if len(kinds) == 1 else object()
    if seen and kind not in seen:
        return True
    marks: set[object] = {(write.region_code, write.key) for write in writes}
    marks.update(write.request_id for write in writes if write.request_id)
    if not marks.isdisjoint(seen):
        return True
    seen |= marks
    seen.add(kind)
    return False


_UNCONDITIONAL: Final = object()
_CONDITIONAL: Final = (object(), object())
