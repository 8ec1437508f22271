"""What goes into the image: by hash, in the versions that tests run with, and nothing that only tests need."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from typing import TYPE_CHECKING

from tests.support.stubs import ROOT

if TYPE_CHECKING:
    from pathlib import Path

DEPLOY = ROOT / "deploy"


def pins(path: Path) -> dict[str, tuple[str, set[str]]]:
    """Name -> version and marker, and the hashes."""
    found: dict[str, tuple[str, set[str]]] = {}
    for block in re.split(r"\n(?=\S)", path.read_text(encoding="utf-8")):
        told = re.match(r"([\w.-]+)(?:\[[\w,]+\])?==(\S+)", block)
        if told is not None:
            found[told[1]] = (told[2], set(re.findall(r"sha256:[0-9a-f]{64}", block)))
    return found


def test_the_image_gets_the_versions_that_tests_run_with() -> None:
    tested = pins(ROOT / "requirements.lock")
    for name in ("requirements.lock", "build.lock"):
        installed = pins(DEPLOY / name)
        assert installed
        for package, (version, hashes) in installed.items():
            assert (version, hashes) == tested[package], f"{name}: {package} is not as locked; run: make lock"
            assert hashes, package


def test_the_image_has_what_production_needs_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    installed = pins(DEPLOY / "requirements.lock").keys()

    def names(lines: list[str]) -> set[str]:
        return {re.match(r"[\w.-]+", line)[0].lower().replace(".", "-") for line in lines}  # pyright: ignore[reportOptionalSubscript]

    assert names(project["dependencies"]) | names(extras["arrow"]) <= installed
    assert not names(extras["embedded"]) & installed
    assert not (names(extras["dev"]) - names(project["dependencies"])) & installed


def test_the_image_takes_in_every_package_and_nothing_secret() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    for package in packages["targets"]["wheel"]["packages"]:
        assert f"COPY {package} {package}\n" in dockerfile
        assert package in allowed
    assert ignored[1] == "*", "everything is left out that is not named"
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for source in copied.split():
            assert any(fnmatch.fnmatch(source, each) for each in allowed), source
            assert (ROOT / source).exists(), source


def test_the_image_runs_as_nobody_in_particular() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE) == ["10001:10001"]
    assert dockerfile.count("--require-hashes") == 2
