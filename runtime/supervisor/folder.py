"""The data folder of a stack: one supervisor at a time, one layout, readable by one release.

`layout.json` says what the folder holds (its format, its IDCs, the ports used last); the lock is the kernel's, so it
never outlives its process.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from runtime.stack_file import write_private
from runtime.supervisor.errors import StackError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
"""Goes up when a release lays the folder out in another way."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the folder holds."""

    idcs: tuple[str, ...] = ()
    ports: dict[str, int] = field(default_factory=dict[str, int])


class DataFolder:
    """An opened, locked data folder; `with` releases it."""

    def __init__(self, path: Path, lock: TextIO) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> Self:
        """Creates the folder if need be and locks it; raises `StackError`."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise StackError(
                "FOLDER_UNUSABLE", f"cannot write to {path}: {error.strerror}", "choose another --data-dir"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise StackError(
                "FOLDER_IN_USE",
                f"{path} is in use by another stack" + (f" (process {holder})" if holder else ""),
                "stop it, or choose another --data-dir",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return cls(path, lock)

    def close(self) -> None:
        """Releases the lock."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load_layout(self) -> Layout:
        """Reads what the folder holds; an empty layout for a new one.

        Raises `StackError` when it belongs to something else.
        """
        file = self.path / "layout.json"
        if not file.exists():
            self._require_empty()
            return Layout()
        try:
            data = cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
            found = data["format"]
            layout = Layout(tuple(data["idcs"]), dict(data["ports"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(
                "FOLDER_UNREADABLE", f"{file} is not what a stack writes ({type(error).__name__})"
            ) from error
        if found != FORMAT:
            raise StackError(
                "FOLDER_OF_ANOTHER_VERSION",
                f"{self.path} has format {found}, this release reads format {FORMAT}",
                "use the release that made it, or choose another --data-dir",
            )
        return layout

    def _require_empty(self) -> None:
        others = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
        if others:
            raise StackError(
                "FOLDER_NOT_EMPTY",
                f"{self.path} holds other things, such as {others[0]}, and no stack",
                "choose an empty --data-dir",
            )

    def save_layout(self, layout: Layout) -> None:
        """Remembers what the folder holds."""
        content = {"format": FORMAT, "idcs": list(layout.idcs), "ports": layout.ports}
        write_private(self.path / "layout.json", json.dumps(content, indent=2) + "\n")
