"""`stack.json`: where the parts of a running embedded stack are.

Written atomically by the supervisor when the stack is ready and whenever a process was started again, removed when it
stops. It names the databases with their passwords, so only its owner may read it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "stack.json"


class StackFileInvalid(Exception):
    """The file is there, but is not what this release writes."""


@dataclass(frozen=True, slots=True)
class IdcEntry:
    """The addresses of one IDC."""

    gateway: str
    """For clients, host:port."""
    peer: str
    database: str
    """A `postgresql://` URL."""
    metrics: str
    """Base URL of the gateway's /metrics, /healthz and /readyz."""


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One process of the stack."""

    name: str
    role: str
    """etcd | postgres | gateway | controller | runner"""
    idc: str
    """Empty when it belongs to none."""
    pid: int
    metrics: str = ""


@dataclass(frozen=True, slots=True)
class StackFile:
    """The whole file."""

    cluster: str
    etcd_endpoints: tuple[str, ...]
    idcs: Mapping[str, IdcEntry]
    processes: tuple[ProcessEntry, ...]

    def save(self, data_dir: Path) -> None:
        """Writes the file in one step, so that a reader sees all of it or the one before."""
        content = {
            "cluster": self.cluster,
            "etcd": {"endpoints": list(self.etcd_endpoints)},
            "idcs": {idc: asdict(entry) for idc, entry in self.idcs.items()},
            "processes": [asdict(process) for process in self.processes],
        }
        write_private(data_dir / NAME, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, data_dir: Path) -> Self:
        """Reads the file; raises `FileNotFoundError` or `StackFileInvalid`."""
        path = data_dir / NAME
        text = path.read_text(encoding="utf-8")
        try:
            data = cast("dict[str, Any]", json.loads(text))
            return cls(
                cluster=data["cluster"],
                etcd_endpoints=tuple(data["etcd"]["endpoints"]),
                idcs={idc: IdcEntry(**entry) for idc, entry in data["idcs"].items()},
                processes=tuple(ProcessEntry(**process) for process in data["processes"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StackFileInvalid(f"{path} is not a stack file of this release ({type(error).__name__})") from error

    @staticmethod
    def remove(data_dir: Path) -> None:
        """Removes the file, if it is there."""
        (data_dir / NAME).unlink(missing_ok=True)

    def process(self, name: str) -> ProcessEntry:
        """The process of this name; raises `KeyError`."""
        for process in self.processes:
            if process.name == name:
                return process
        raise KeyError(name)


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, in one step."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
