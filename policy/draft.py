"""From plain data to a document, saving what can be saved.

When parts of a document break the schema, the rest is still worth checking: a person wants every finding at once. So a
draft holds the parts that are whole, remembers where they stood, and which names belong to parts that are not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import TypeAdapter, ValidationError

from policy.document import (
    AccessRule,
    ColumnEntry,
    DatasetEntry,
    Expectation,
    IdcEntry,
    Part,
    PolicyDocument,
    ResidencyRule,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic_core import ErrorDetails

    from policy.report import Path, Report

_MODELS: Final[Mapping[str, type[Part]]] = {
    "idcs": IdcEntry,
    "residency": ResidencyRule,
    "access": AccessRule,
    "datasets": DatasetEntry,
    "expect": Expectation,
}
_SECTIONS: Final = ("idcs", "groups", "residency", "access", "datasets", "expect")
_ALL: Final = "*"
_MARKS: Final = frozenset({"[key]"})
"""What pydantic adds to the path of a broken key."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The readable parts of a document."""

    document: PolicyDocument
    is_whole: bool
    indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """For sections that are lists: where each entry stood."""
    unreadable: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """For each section, names of entries that are not in the document; `*` when the section itself is not."""

    def place(self, section: str, number: int) -> Path:
        """Path of an entry of a list section in the text."""
        return (section, self.indices.get(section, range(number + 1))[number])

    def residency(self) -> Iterator[tuple[Path, ResidencyRule]]:
        """Residency rules with their paths."""
        return ((self.place("residency", number), rule) for number, rule in enumerate(self.document.residency))

    def access(self) -> Iterator[tuple[Path, AccessRule]]:
        """Access rules with their paths."""
        return ((self.place("access", number), rule) for number, rule in enumerate(self.document.access))

    def expectations(self) -> Iterator[tuple[Path, Expectation]]:
        """Expectations with their paths."""
        return ((self.place("expect", number), entry) for number, entry in enumerate(self.document.expect))

    def may_have(self, section: str, name: str) -> bool:
        """Whether the name may belong to a part that could not be read."""
        names = self.unreadable.get(section, frozenset[str]())
        return _ALL in names or name in names


def read_draft(data: object, report: Report) -> Draft:
    """Reads plain data as a document; everything that breaks the schema is reported."""
    if not isinstance(data, dict):
        report.error("SCHEMA", "a policy is a mapping with version, idcs, residency, datasets and more", ())
        data = cast("dict[str, object]", {})
    sections = cast("dict[str, object]", data)
    try:
        return Draft(PolicyDocument.model_validate_json(json.dumps(sections)), is_whole=not report.has_errors)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    for detail in details:
        path = tuple(part for part in detail["loc"] if part not in _MARKS)
        is_about_key = detail["type"] == "extra_forbidden" or "[key]" in detail["loc"]
        report.error("SCHEMA", _explain(detail, path), path, at_key=is_about_key)
    return _salvage(sections, [detail["loc"] for detail in details])


def _salvage(sections: Mapping[str, object], places: list[Path]) -> Draft:
    broken: dict[str, set[str | int]] = {section: set() for section in _SECTIONS}
    for place in places:
        if place and place[0] in broken:
            broken[str(place[0])].add(place[1] if len(place) > 1 else _ALL)
    kept: dict[str, object] = {}
    indices: dict[str, tuple[int, ...]] = {}
    unreadable: dict[str, frozenset[str]] = {}
    for section in _SECTIONS:
        bad, content = broken[section], sections.get(section)
        unreadable[section] = frozenset(str(name) for name in bad)
        if _ALL in bad or not isinstance(content, (dict, list)):
            kept[section] = () if section in {"residency", "access", "expect"} else {}
        elif isinstance(content, dict):
            entries = cast("dict[str, object]", content)
            kept[section] = {name: _parse(section, it) for name, it in entries.items() if name not in bad}
        else:
            items = cast("list[object]", content)
            indices[section] = tuple(number for number in range(len(items)) if number not in bad)
            kept[section] = tuple(_parse(section, items[number]) for number in indices[section])
    document = PolicyDocument.model_construct(None, version=1, **cast("dict[str, Any]", kept))
    return Draft(document, False, indices, unreadable)


def _parse(section: str, content: object) -> object:
    text = json.dumps(content)
    if section == "groups":
        return TypeAdapter(tuple[str, ...]).validate_json(text)
    return _MODELS[section].model_validate_json(text)


def _explain(detail: ErrorDetails, path: Path) -> str:
    """The finding as a person says it; what pydantic says where that is clear enough."""
    kind, name = detail["type"], str(path[-1]) if path else ""
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        near = get_close_matches(name, _fields_around(path), n=1)
        return f"unknown field {name}" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "string_type":
        return "a word is expected here; put a number, true, false or null that is meant as a word in quotes"
    if kind == "value_error":
        return str(detail.get("ctx", {}).get("error", detail["msg"]))
    return detail["msg"].replace("Input should", "should").replace("Tuple", "list").replace("Dictionary", "mapping")


def _fields_around(path: Path) -> list[str]:
    """Names of the fields that may stand where the last part of the path stands."""
    model: type[Part] = PolicyDocument
    if len(path) > 2:
        model = ColumnEntry if "columns" in path[:-1] else _MODELS.get(str(path[0]), PolicyDocument)
    return [info.alias or name for name, info in model.model_fields.items()]
