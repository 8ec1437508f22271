"""Judges whether a history of reads and writes of one key is linearizable (law L4).

The search is Wing and Gong's with Lowe's memo of (set of linearized operations, state), as in "Testing for
linearizability" (Lowe, 2017): walk the events in time order, linearize any operation whose call has been met and that
fits the state, undo when a return is met whose operation could not be placed. A write whose answer got lost may have
taken effect at any moment after its call, or never.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

LOST = math.inf
"""The end of an operation whose answer never came."""


@dataclass(frozen=True, slots=True)
class Event:
    """One read or write of one key. A read's value is what it saw; `None` is "no row", also what a delete writes."""

    is_write: bool
    value: Hashable
    start: float
    end: float
    who: str = ""


class _Node:
    """A call or a return in the doubly linked list of what is not linearized yet."""

    __slots__ = ("index", "is_call", "match", "next", "previous")

    def __init__(self, index: int, *, is_call: bool) -> None:
        self.index = index
        self.is_call = is_call
        self.match: _Node | None = None
        self.next: _Node | None = None
        self.previous: _Node | None = None

    def lift(self) -> None:
        """Takes a call and its return out of the list."""
        for node in (self, self.match):
            if node is not None:
                node.previous.next = node.next
                if node.next is not None:
                    node.next.previous = node.previous

    def unlift(self) -> None:
        """Puts them back, in the reverse order."""
        for node in (self.match, self):
            if node is not None:
                node.previous.next = node
                if node.next is not None:
                    node.next.previous = node


def _linked(events: list[Event]) -> _Node:
    points: list[tuple[float, int, _Node]] = []
    for index, event in enumerate(events):
        call = _Node(index, is_call=True)
        points.append((event.start, 0, call))
        if event.end != LOST:
            call.match = _Node(index, is_call=False)
            points.append((event.end, 1, call.match))
    head = last = _Node(-1, is_call=True)
    for _, _, node in sorted(points, key=lambda point: point[:2]):
        last.next, node.previous = node, last
        last = node
    return head


def is_linearizable(history: Iterable[Event], initial: Hashable = None) -> bool:
    """Whether one key's history can be put in one order that respects real time and the register's meaning."""
    events = [event for event in history if event.is_write or event.end != LOST]
    head = _linked(events)
    must = sum(1 << index for index, event in enumerate(events) if event.end != LOST)
    done, state = 0, initial
    seen: set[tuple[int, Hashable]] = {(0, initial)}
    path: list[tuple[_Node, Hashable]] = []
    node = head.next
    while must & ~done:
        if node is not None and node.is_call:
            event = events[node.index]
            fits = event.is_write or event.value == state
            after = (done | 1 << node.index, event.value if event.is_write else state)
            if fits and after not in seen:
                seen.add(after)
                path.append((node, state))
                done, state = after
                node.lift()
                node = head.next
            else:
                node = node.next
            continue
        if not path:
            return False
        node, state = path.pop()
        done &= ~(1 << node.index)
        node.unlift()
        node = node.next
    return True


def violations(histories: Mapping[str, Iterable[Event]]) -> list[str]:
    """The keys whose history is not linearizable."""
    return [key for key, history in histories.items() if not is_linearizable(history)]


class Recorder:
    """Collects the histories of many keys while clients run."""

    def __init__(self) -> None:
        self.histories: dict[str, list[Event]] = defaultdict(list)

    def add(self, key: str, event: Event) -> None:
        """Adds one operation that has ended, or whose answer is lost."""
        self.histories[key].append(event)

    def __len__(self) -> int:
        return sum(map(len, self.histories.values()))
