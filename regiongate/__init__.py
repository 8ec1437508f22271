"""Keeps rows under the law of their region, and reaches them from anywhere.

`async with regiongate.connect("host:port") as client` is where to start; `regiongate.blocking` is the same for scripts
without an event loop, `regiongate.errors` what can go wrong. Names are loaded when they are first used, because every
process imports this package for its stubs.
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

__all__ = [
    "Client",
    "ClientSettings",
    "DatasetColumns",
    "Decision",
    "Delete",
    "MoveReceipt",
    "Ownership",
    "Page",
    "Put",
    "Receipt",
    "RegiongateError",
    "RouteChange",
    "Row",
    "ShardOwner",
    "ShardSet",
    "TlsFiles",
    "connect",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("policy.errors" if name == "RegiongateError" else "gateway.client"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
