"""Keeps rows under the law of their region, and reaches them from anywhere.

`async with regiongate.connect("host:port") as client` is where to start; `regiongate.blocking` is the same for scripts
without an event loop, `regiongate.errors` what can go wrong. `@regiongate.job(...)` makes a job of a function, and
`regiongate.Ownership` tells a program which shards are its own. Names are loaded when they are first used, because
every process imports this package for its stubs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.client import (
        Client,
        ClientSettings,
        DatasetColumns,
        Decision,
        Delete,
        MoveReceipt,
        Ownership,
        Page,
        Put,
        Receipt,
        RouteChange,
        Row,
        ShardOwner,
        ShardSet,
        TlsFiles,
        connect,
    )
    from policy.errors import RegiongateError
    from regionjobs.batch import Batch
    from regionjobs.definition import Format, Job, Kind, Misfire, OnPoison, Retry, job
    from regionjobs.rows import JobRow
    from regionjobs.source import AdoptedTable, CallableSource, SourceRow
    from regionjobs.triggers import After, At, Cron, Every, Manual

__all__ = [
    "AdoptedTable",
    "After",
    "At",
    "Batch",
    "CallableSource",
    "Client",
    "ClientSettings",
    "Cron",
    "DatasetColumns",
    "Decision",
    "Delete",
    "Every",
    "Format",
    "Job",
    "JobRow",
    "Kind",
    "Manual",
    "Misfire",
    "MoveReceipt",
    "OnPoison",
    "Ownership",
    "Page",
    "Put",
    "Receipt",
    "RegiongateError",
    "Retry",
    "RouteChange",
    "Row",
    "ShardOwner",
    "ShardSet",
    "SourceRow",
    "TlsFiles",
    "connect",
    "job",
]


_HOMES = {
    "RegiongateError": "policy.errors",
    **dict.fromkeys(("Format", "Job", "Kind", "Misfire", "OnPoison", "Retry", "job"), "regionjobs.definition"),
    **dict.fromkeys(("After", "At", "Cron", "Every", "Manual"), "regionjobs.triggers"),
    **dict.fromkeys(("AdoptedTable", "CallableSource", "SourceRow"), "regionjobs.source"),
    "Batch": "regionjobs.batch",
    "JobRow": "regionjobs.rows",
}
"""Name -> its module; the SDK's for all others."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "gateway.client")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
