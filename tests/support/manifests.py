"""The Kubernetes manifests as an overlay yields them, without kustomize.

Does what our manifests use of it and no more: resources, components, generated ConfigMaps, patches (merged by name, or
as operations), labels, images, the namespace. Anything else in a kustomization is an error: nothing goes untested.
A test compares the outcome with kustomize's own where `kubectl` is at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

FOLDER: Final = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OVERLAYS: Final = tuple(sorted(path.name for path in (FOLDER / "overlays").iterdir()))

_KNOWN: Final = {
    *("apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "labels", "patches", "images")
}


def load_all(path: Path) -> list[Any]:
    """The documents of a file, as Kubernetes reads them (YAML 1.1: 0440 is a mode); a key said twice is an error."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    return [each for each in yaml.load_all(path.read_text(encoding="utf-8")) if each is not None]


def read_variables(path: Path) -> dict[str, str]:
    """NAME=VALUE lines."""
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def build(folder: Path) -> list[dict[str, Any]]:
    """The resources of an overlay or a base. Raises `OSError`, `KeyError` or `ValueError` for what does not fit."""
    return _apply(folder, [])


def _apply(folder: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (told,) = load_all(folder / "kustomization.yaml")
    if unknown := told.keys() - _KNOWN:
        raise ValueError(f"{folder}: not understood here: {sorted(unknown)}")
    for name in told.get("resources", ()):
        path = folder / name
        found = [*found, *(build(path) if path.is_dir() else load_all(path))]
    found = [*found, *(_generate(folder, each) for each in told.get("configMapGenerator", ()))]
    for name in told.get("components", ()):
        found = _apply(folder / name, found)
    for patch in told.get("patches", ()):
        _patch(folder, patch, found)
    for resource in found:
        _label(resource, told.get("labels", ()))
        _set_images(resource, told.get("images", ()))
        _set_namespace(resource, told.get("namespace", ""))
    return found


def _generate(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, str] = {}
    for name in told.get("envs", ()):
        data |= read_variables(folder / name)
    for name in told.get("files", ()):
        data[name] = (folder / name).read_text(encoding="utf-8")
    data |= dict(each.split("=", 1) for each in told.get("literals", ()))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": told["name"]}, "data": data}


def _patch(folder: Path, told: dict[str, Any], found: list[dict[str, Any]]) -> None:
    if "path" in told:
        (content,) = load_all(folder / told["path"])
    else:
        content = YAML(typ="safe", pure=True).load(told["patch"])
    target = told.get("target") or {"kind": content["kind"], "name": content["metadata"]["name"]}
    chosen = [it for it in found if (it["kind"], it["metadata"]["name"]) == (target["kind"], target["name"])]
    if not chosen and "target" not in told:
        raise ValueError(f"{folder}: a patch of {target}, which is not there")
    for resource in chosen:
        if isinstance(content, list):
            for operation in content:
                _operate(resource, operation)
        else:
            _merge(resource, content)


def _operate(resource: dict[str, Any], operation: dict[str, Any]) -> None:
    if operation["op"] != "add":
        raise ValueError(f"not understood here: {operation['op']}")
    *way, last = operation["path"].removeprefix("/").split("/")
    place: Any = resource
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if isinstance(place, list):
        place.append(operation["value"]) if last == "-" else place.insert(int(last), operation["value"])
    else:
        place[last] = operation["value"]


def _merge(into: dict[str, Any], patch: dict[str, Any]) -> None:
    """Kubernetes' strategic merge, for lists of things with names (volumeMounts: with paths)."""
    for key, value in patch.items():
        known = into.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            mark = "mountPath" if key == "volumeMounts" else "name"
            for item in value:
                same = [it for it in known if it[mark] == item[mark]]
                _merge(same[0], item) if same else known.insert(0, item)
        else:
            into[key] = value


def _label(resource: dict[str, Any], told: list[dict[str, Any]]) -> None:
    for each in told:
        resource["metadata"]["labels"] = resource["metadata"].get("labels", {}) | each["pairs"]
        if "template" in resource.get("spec", {}):
            metadata = resource["spec"]["template"]["metadata"]
            metadata["labels"] = metadata["labels"] | each["pairs"]


def _set_images(resource: dict[str, Any], told: list[dict[str, Any]]) -> None:
    names = {each["name"]: f"{each['newName']}:{each['newTag']}" for each in told}
    for container in resource.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
        container["image"] = names.get(container["image"], container["image"])


def _set_namespace(resource: dict[str, Any], namespace: str) -> None:
    if namespace:
        resource["metadata"]["name" if resource["kind"] == "Namespace" else "namespace"] = namespace
