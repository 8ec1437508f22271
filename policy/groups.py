"""Groups of RegionCodes: what a name in a rule stands for.

A group's name always means the group, anything else must be a RegionCode; so no group may be named like a country,
or the same word would mean two things. Groups may hold groups, never themselves.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from policy.document import REGION_CODE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


MAX_DEPTH: Final = 32
"""Most groups that may lie in each other."""


class UnknownName(ValueError):
    """A name that is neither a group nor a RegionCode."""

    def __init__(self, name: str, groups: Iterable[str]) -> None:
        near = get_close_matches(name, list(groups), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        super().__init__(f"{name} is neither a group nor a RegionCode such as DE or CA-QC{hint}")


class GroupCycle(ValueError):
    """A group that holds itself, directly or through others."""

    def __init__(self, chain: tuple[str, ...]) -> None:
        self.chain = chain
        super().__init__(f"group {chain[0]} holds itself: {' -> '.join(chain)}")


class GroupTooDeep(ValueError):
    """Groups in groups beyond `MAX_DEPTH`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"group {name} lies more than {MAX_DEPTH} groups deep")


class Groups:
    """Expands names to RegionCodes, each group once."""

    def __init__(self, members: Mapping[str, tuple[str, ...]]) -> None:
        self._members = members
        self._expanded: dict[str, tuple[str, ...]] = {}

    def expand(self, names: Iterable[str]) -> tuple[str, ...]:
        """RegionCodes that the names stand for, without repeats, in their order.

        Raises:
            UnknownName, GroupCycle, GroupTooDeep: a name cannot be expanded.
        """
        return tuple(dict.fromkeys(code for name in names for code in self._expand(name, ())))

    def name(self, codes: Iterable[str]) -> list[str]:
        """The shortest way to name the codes: the largest groups that hold nothing else, then single codes."""
        left = set(codes)
        expanded = {name: set(self.expand((name,))) for name in self._members}
        names: list[str] = []
        for name in sorted(expanded, key=lambda it: (-len(expanded[it]), it)):
            if len(expanded[name]) > 1 and expanded[name] <= left:
                names.append(name)
                left -= expanded[name]
        return [*names, *sorted(left)]

    def _expand(self, name: str, inside: tuple[str, ...]) -> tuple[str, ...]:
        if name in self._expanded:
            return self._expanded[name]
        if name in inside:
            raise GroupCycle((*inside[inside.index(name) :], name))
        if name not in self._members:
            if not REGION_CODE.fullmatch(name):
                raise UnknownName(name, self._members)
            return (name,)
        if len(inside) == MAX_DEPTH:
            raise GroupTooDeep(name)
        codes = dict.fromkeys(code for member in self._members[name] for code in self._expand(member, (*inside, name)))
        self._expanded[name] = tuple(codes)
        return self._expanded[name]
