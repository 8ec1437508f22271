"""YAML as plain data, with the place of every part, and none of YAML's surprises.

Only what JSON knows comes out: mappings with string keys, lists, strings, decimal integers, true, false and null. `NO`
and `on` are strings, whatever version of YAML a document claims. A key that stands twice, a tag, and an alias that
holds itself are errors; numbers in other notations stay text, so that a check that wants a number complains.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, cast

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from policy.report import Path, Position

if TYPE_CHECKING:
    from policy.report import Report

MAX_PARTS: Final = 200_000
"""Most parts of a document after its aliases are expanded."""

_TAG: Final = "tag:yaml.org,2002:"
_KNOWN_TAGS: Final = frozenset(
    _TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq", "value", "merge")
)
_DECIMAL: Final = re.compile(r"[-+]?[0-9]{1,18}", re.ASCII)
_WORDS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def read_yaml(text: str, file: str, report: Report) -> object:
    """The text as plain data; findings and positions go to the report. None when there is nothing to go on with."""
    report.positions.values.setdefault((), Position(file, 1, 1))
    try:
        node = cast("Node | None", YAML(typ="safe", pure=True).compose(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Position(file, mark.line + 1, mark.column + 1) if mark else Position(file, 1, 1)
        report.positions.values[()] = place
        report.error("YAML_SYNTAX", f"not YAML: {error.problem or error.context}", ())
        return None
    except (YAMLError, ValueError) as error:
        report.error("YAML_SYNTAX", f"not YAML: {str(error).splitlines()[0]}", ())
        return None
    except RecursionError:
        report.error("YAML_SYNTAX", "nested too deep", ())
        return None
    if node is None:
        report.error("YAML_SYNTAX", "the document is empty", ())
        return None
    return _Reader(file, report).read(node, ())


class _Reader:
    """Turns one tree of nodes into data."""

    def __init__(self, file: str, report: Report) -> None:
        self._file = file
        self._report = report
        self._open: set[int] = set()
        self._parts = 0

    def read(self, node: Node, path: Path) -> object:
        """The node as data; its place is noted."""
        self._parts += 1
        self._report.positions.values[path] = self._place(node)
        if self._parts > MAX_PARTS:
            if self._parts == MAX_PARTS + 1:
                self._report.error("YAML_SIZE", f"more than {MAX_PARTS} parts", path)
            return None
        if id(node) in self._open:
            self._report.error("YAML_ALIAS", "an alias may not lie inside what it stands for", path)
            return None
        if node.tag not in _KNOWN_TAGS:
            self._report.error("YAML_TAG", f"tags such as {node.tag} are not accepted", path)
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode):
                items = cast("list[Node]", node.value)
                return [self.read(item, (*path, number)) for number, item in enumerate(items)]
            return self._scalar(cast("ScalarNode", node), path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, object]:
        data: dict[str, object] = {}
        for key_node, value_node in cast("list[tuple[Node, Node]]", node.value):
            key = self._key(key_node, path)
            here = (*path, key)
            if key in data:
                first = self._report.positions.keys[here]
                self._report.positions.values[here] = self._place(key_node)
                where = f"line {first.line}, column {first.column}"
                self._report.error("YAML_DUPLICATE_KEY", f"{key} stands twice; first at {where}", here)
                continue
            self._report.positions.keys[here] = self._place(key_node)
            data[key] = self.read(value_node, here)
        return data

    def _key(self, node: Node, path: Path) -> str:
        # A number or `true` as a key is taken as the word that it is written as: a name's grammar judges it.
        if isinstance(node, ScalarNode):
            return cast("str", node.value)
        self._report.positions.values[(*path, "?")] = self._place(node)
        self._report.error("YAML_KEY", "a key must be one word", (*path, "?"))
        return "?"

    def _scalar(self, node: ScalarNode, path: Path) -> object:
        text = cast("str", node.value)
        kind = node.tag.removeprefix(_TAG)
        if kind == "int" and _DECIMAL.fullmatch(text):
            return int(text)
        if kind == "bool" and text in _WORDS:
            return _WORDS[text]
        if kind == "null":
            return None
        if any("\ud800" <= char <= "\udfff" for char in text):
            self._report.error("YAML_SYNTAX", "not Unicode: half a surrogate pair", path)
            return ""
        return text

    def _place(self, node: Node) -> Position:
        mark = node.start_mark
        return Position(self._file, mark.line + 1, mark.column + 1)
