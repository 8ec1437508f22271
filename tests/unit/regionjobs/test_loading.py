"""Modules that define jobs, and what is said of those that cannot be loaded."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from policy.errors import InvalidJob, JobConflict
from regionjobs.definition import forget_registered
from regionjobs.loading import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JOB = """
import regiongate

@regiongate.job(dataset="customers")
async def {name}(batch):
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, empty; modules and jobs that are loaded are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    forget_registered()
    yield tmp_path
    forget_registered()
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text)
    return name


def test_modules_are_found_by_name_in_the_current_folder_and_by_file(folder):
    write(folder, "rg_one", JOB.format(name="one"))
    (folder / "deep").mkdir()
    write(folder / "deep", "rg_two", JOB.format(name="two"))
    assert [it.name for it in load(["rg_one", "deep/rg_two.py"])] == ["one", "two"]
    assert [it.name for it in load(["rg_one"], ["two"])] == ["two"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module", r"bad\.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:\n", r"SyntaxError: invalid syntax \(rg_bad\.py, line 1\)"),
        ("\nraise ValueError('first\\nsecond')", r"rg_bad\.py, line 2: ValueError: first$"),
        ("import sys\nsys.exit('no')", r"rg_bad\.py, line 2: SystemExit: no$"),
        ("raise SystemExit", r"rg_bad\.py, line 1: SystemExit: $"),
        ("raise RecursionError", r"RecursionError: $"),
    ],
)
@pytest.mark.parametrize("named", ["rg_bad", "rg_bad.py"])
def test_a_module_that_cannot_be_imported_is_named_in_one_line_with_the_place(folder, text, words, named):
    write(folder, "rg_bad", text)
    with pytest.raises(InvalidJob, match=words) as raised:
        load([named])
    assert f"module {named} cannot be imported" in str(raised.value)
    assert raised.value.field_name == "module"
    assert "\n" not in str(raised.value)


def test_a_module_that_is_not_there_is_named(folder):
    for module in ("rg_missing", "rg_missing.py", "deep/rg_missing.py", "rg_missing.jobs"):
        with pytest.raises(InvalidJob, match="rg_missing") as raised:
            load([module])
        assert raised.value.field_name == "module"


def test_a_file_whose_name_another_module_has_is_refused_instead_of_ignored(folder):
    write(folder, "json", JOB.format(name="one"))
    with pytest.raises(InvalidJob, match="another module is called json already; rename the file"):
        load(["json.py"])
    for name in ("here", "there"):
        (folder / name).mkdir()
        write(folder / name, "rg_same", JOB.format(name=name))
    with pytest.raises(InvalidJob, match=r"there/rg_same\.py.*rename"):
        load(["here/rg_same.py", "there/rg_same.py"])


def test_the_same_file_may_be_given_twice(folder):
    write(folder, "rg_one", JOB.format(name="one"))
    assert len(load(["rg_one.py", "rg_one", "./rg_one.py"])) == 1


def test_a_module_without_jobs_is_refused(folder):
    write(folder, "rg_empty", "x = 1")
    with pytest.raises(InvalidJob, match="rg_empty: no job is defined there") as raised:
        load(["rg_empty"])
    assert raised.value.field_name == "module"


def test_a_job_that_is_not_there_is_refused_and_the_others_are_named(folder):
    write(folder, "rg_one", JOB.format(name="one") + JOB.format(name="two"))
    with pytest.raises(InvalidJob, match="no job is called three; there are one, two") as raised:
        load(["rg_one"], ["three"])
    assert raised.value.field_name == "job"


def test_two_jobs_of_one_name_that_differ_are_refused_by_that_name(folder):
    write(folder, "rg_one", JOB.format(name="one"))
    write(folder, "rg_two", JOB.format(name="one").replace("customers", "orders"))
    with pytest.raises(JobConflict, match="two jobs are called one, and they are not the same") as raised:
        load(["rg_one", "rg_two"])
    assert raised.value.field_name == "name"


def test_a_definition_that_breaks_a_rule_names_the_argument(folder):
    write(folder, "rg_bad", JOB.format(name="one").replace('"customers"', '"customers", batch_size=0'))
    with pytest.raises(InvalidJob, match="job one: batch_size") as raised:
        load(["rg_bad"])
    assert raised.value.field_name == "batch_size"
