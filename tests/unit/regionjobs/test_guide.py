"""docs/jobs.md: its example is the file that the tests run, its other modules stand, and it leaves nothing out."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import pytest

import regiongate
from regionjobs.definition import forget_registered, job, registered
from tests.support.stack import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDE = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "docs" / "examples" / "settle.py").read_text(encoding="utf-8")
MODULES = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def no_other_jobs() -> Iterator[None]:
    """Each test defines its own."""
    forget_registered()
    yield
    forget_registered()


def test_the_example_is_the_file_that_the_tests_run() -> None:
    assert EXAMPLE in MODULES


def test_every_module_of_the_guide_defines_jobs_that_stand() -> None:
    for module in MODULES:
        exec(compile(module, "jobs.md", "exec"), {"__name__": "guide", "regiongate": regiongate, "pc": pc})
    assert [it.name for it in registered()] == ["screen", "settle", "ship", "total", "welcome"]


def test_every_option_of_a_job_is_explained() -> None:
    table = GUIDE.partition("## Options")[2]
    for name in inspect.signature(job).parameters:
        assert f"`{name}`" in table, name


def test_every_attribute_of_a_batch_is_explained() -> None:
    known = {name for name in vars(regiongate.Batch) if not name.startswith("_")} | {"attempt"}
    for name in known - {"close"}:
        assert f"batch.{name}" in GUIDE, name


def test_every_link_inside_the_guide_leads_somewhere() -> None:
    assert set(re.findall(r"\]\(#([^)]+)\)", GUIDE)) == places_of(GUIDE)
    for path, anchor in re.findall(r"\]\(([^#)]+\.md)(?:#([^)]+))?\)", GUIDE):
        text = (ROOT / "docs" / path).read_text(encoding="utf-8")
        assert not anchor or anchor in places_of(text), (path, anchor)


def places_of(page: str) -> set[str]:
    """What a link may name of a page: its headings."""
    return {re.sub(r"[^\w -]", "", it.lower()).replace(" ", "-") for it in re.findall(r"^## (.+)$", page, re.MULTILINE)}
