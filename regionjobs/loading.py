"""Loads the modules that define jobs, and says clearly what is wrong with one that cannot be loaded."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from policy.errors import InvalidJob
from regionjobs.definition import Kind, registered
from regionjobs.triggers import After
from rowstore.jobs.registry import follows_itself

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from regionjobs.definition import Job


def load(modules: Sequence[str], names: Sequence[str] = ()) -> tuple[Job, ...]:
    """Imports modules, by dotted name or by path of a file, and returns the jobs that they define.

    Args:
        modules: The current folder counts as a place to import from, as with `python -m`.
        names: Only these jobs; all when empty.

    Raises:
        InvalidJob: A module cannot be imported, or breaks a rule; or there is no such job, or none at all.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        _load_one(module)
    jobs = registered()
    known = {job.name for job in jobs}
    for name in names:
        if name not in known:
            raise InvalidJob(
                f"no job is called {name}; there are {', '.join(sorted(known)) or 'none'}", field_name="job"
            )
    if not jobs:
        raise InvalidJob(f"{', '.join(modules)}: no job is defined there; see @regiongate.job", field_name="module")
    _check_order(jobs)
    return tuple(job for job in jobs if not names or job.name in names)


def _check_order(jobs: Sequence[Job]) -> None:
    """A job after one that never ends would never run, one after itself for ever; other modules are not known here."""
    kinds = {job.name: job.kind for job in jobs}
    after = {job.name: job.trigger.job if isinstance(job.trigger, After) else None for job in jobs}
    for job in jobs:
        if follows_itself(job.name, after):
            raise InvalidJob(
                f"job {job.name}: trigger: it would come after itself, and never end", field_name="trigger"
            )
        if isinstance(job.trigger, After) and kinds.get(job.trigger.job) is Kind.LONG_RUNNING:
            raise InvalidJob(
                f"job {job.name}: trigger: it comes after {job.trigger.job}, which is long-running and never ends",
                field_name="trigger",
            )


def _load_one(module: str) -> None:
    name, path = module, Path(module)
    if module.endswith(".py"):
        if not path.is_file():
            raise InvalidJob(f"module {module}: there is no such file", field_name="module")
        sys.path.insert(0, str(path.resolve().parent))
        name = path.stem
    try:
        loaded = importlib.import_module(name)
    except InvalidJob:
        raise
    except (Exception, SystemExit) as error:
        words = (str(error).splitlines() or [""])[0]
        raise InvalidJob(
            f"module {module} cannot be imported: {_place_of(error)}{type(error).__name__}: {words}",
            field_name="module",
        ) from error
    if module.endswith(".py") and not _is_from(loaded, path):
        raise InvalidJob(
            f"module {module} cannot be imported: another module is called {name} already; rename the file",
            field_name="module",
        )


def _is_from(loaded: ModuleType, path: Path) -> bool:
    return loaded.__file__ is not None and Path(loaded.__file__).resolve() == path.resolve()


def _place_of(error: BaseException) -> str:
    """File and line where it happened, when that is not the import machinery itself."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "importlib" not in frame.filename and not frame.filename.startswith("<")]
    if len(ours) < 2:
        return ""
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}: "
