"""Reads policy documents from text and files, and checks them: every finding at once, each with its place.

The order is text, schema, meaning, expectations. A document that breaks the schema in one place is still checked for
its meaning in all others; only the expectations wait until the rest stands, since they judge the whole.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic.json_schema import models_json_schema
from ruamel.yaml import YAML

from policy.analysis import analyse
from policy.document import PolicyDocument
from policy.draft import read_draft
from policy.errors import PolicyRejected
from policy.report import Position, Positions, Report
from policy.yaml_text import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path as FilePath

    from policy.findings import Finding

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
_SUFFIXES: Final = (".yaml", ".yml")
_SCHEMA_ID: Final = "https://regiongate.dev/schema/policy-v1.json"


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A document that stands."""

    document: PolicyDocument
    text: str
    """The YAML to apply: the file's own, or that of all files of a folder together."""
    findings: tuple[Finding, ...]
    """Warnings and notes."""
    positions: Positions


def load_policy(text: str, file: str = "") -> LoadedPolicy:
    """Reads and checks a document; `file` is named in the findings.

    Takes some 0.1 ms a line: call it in a thread where others wait.

    Raises:
        PolicyRejected: with every finding.
    """
    report = Report()
    if len(text.encode(errors="replace")) > MAX_DOCUMENT_BYTES:
        report.positions.values[()] = Position(file, 1, 1)
        report.error("SIZE", f"a policy may have {MAX_DOCUMENT_BYTES} bytes", ())
        raise _rejected(report)
    data = read_yaml(text, file, report)
    return _check(data, text, report, is_readable=not report.has_errors or data is not None)


def load_policy_files(path: FilePath) -> LoadedPolicy:
    """Reads and checks a file, or all `*.yaml` and `*.yml` files of a folder as one document.

    The files of a folder are merged in the order of their names: mappings join, lists follow each other.

    Raises:
        PolicyRejected: with every finding, each with its own file.
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        return load_policy(_read(path), str(path))
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    report = Report()
    report.positions.values[()] = Position(str(path), 0, 0)
    if not files:
        report.error("NO_FILES", "the folder has no .yaml files", ())
        raise _rejected(report)
    merged: dict[str, object] = {}
    for file in files:
        one = Report()
        data = read_yaml(_read(file), str(file), one)
        report.findings += one.findings
        if isinstance(data, dict):
            _merge(merged, cast("dict[str, object]", data), one.positions, report)
        elif not one.has_errors:
            report.positions.values[str(file),] = Position(str(file), 1, 1)
            report.error("SCHEMA", "a policy file is a mapping", (str(file),))
    return _check(merged, _dump(merged), report, is_readable=True)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the document, for editors."""
    _, schema = models_json_schema([(PolicyDocument, "validation")], by_alias=True)
    _close_mappings(schema)
    root = cast("dict[str, Any]", schema["$defs"].pop("PolicyDocument"))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _SCHEMA_ID,
        **root,
        "title": "regiongate policy",
        "$defs": schema["$defs"],
    }


def _close_mappings(node: object) -> None:
    """Forbids names that break their grammar, which pydantic's schema leaves open."""
    if isinstance(node, dict):
        mapping = cast("dict[str, object]", node)
        if "patternProperties" in mapping:
            mapping["additionalProperties"] = False
        for child in tuple(mapping.values()):
            _close_mappings(child)
    elif isinstance(node, list):
        for child in cast("list[object]", node):
            _close_mappings(child)


def _check(data: object, text: str, report: Report, *, is_readable: bool) -> LoadedPolicy:
    if is_readable:
        draft = read_draft(data, report)
        analyse(draft, report)
        if not report.has_errors:
            return LoadedPolicy(draft.document, text, report.in_order(), report.positions)
    raise _rejected(report)


def _rejected(report: Report) -> PolicyRejected:
    findings = report.in_order()
    errors = [finding for finding in findings if finding.severity == "error"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return PolicyRejected(f"the policy is rejected: {errors[0]}{more}", findings=findings)


def _read(file: FilePath) -> str:
    return file.read_bytes().decode("utf-8", errors="surrogateescape")


def _merge(into: dict[str, object], data: Mapping[str, object], places: Positions, report: Report) -> None:
    """Adds one file's sections; the places of its lists' entries move on by what is there already."""
    for section, content in data.items():
        before = into.get(section)
        shift = len(cast("list[object]", before)) if isinstance(before, list) else 0
        _take_places((section,), shift, places, report.positions)
        if before is None:
            into[section] = content
        elif isinstance(before, list) and isinstance(content, list):
            into[section] = [*cast("list[object]", before), *cast("list[object]", content)]
        elif isinstance(before, dict) and isinstance(content, dict):
            entries, new = cast("dict[str, object]", before), cast("dict[str, object]", content)
            for name in entries.keys() & new.keys():
                report.error("YAML_DUPLICATE_KEY", f"{name} stands in two files", (section, name), at_key=True)
            into[section] = {**entries, **new}
        elif before != content:
            report.error("SCHEMA", f"{section} is one thing here and another in an earlier file", (section,))


def _take_places(section: tuple[str], shift: int, places: Positions, into: Positions) -> None:
    for source, target in ((places.values, into.values), (places.keys, into.keys)):
        for path, place in source.items():
            if path[:1] == section:
                entry = path[1] if len(path) > 1 else None
                target[(*section, entry + shift, *path[2:]) if isinstance(entry, int) else path] = place


def _dump(data: Mapping[str, object]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.width = 120
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    out = io.StringIO()
    yaml.dump(dict(_in_document_order(data)), out)
    return out.getvalue()


def _in_document_order(data: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    order = list(PolicyDocument.model_fields)
    return sorted(data.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
