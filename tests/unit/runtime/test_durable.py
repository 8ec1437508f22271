"""Folders that are on the disk before they count."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runtime.embedded.durable import sync_tree

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_every_file_and_every_folder_of_a_tree_is_synced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law L3: rows that a database has acknowledged rest on files that it did not write itself."""
    root = tmp_path / "data"
    (root / "base" / "1").mkdir(parents=True)
    (root / "empty").mkdir()
    for path in (root / "PG_VERSION", root / "base" / "1" / "112"):
        path.write_text("18")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not ours")
    (root / "link").symlink_to(elsewhere)
    synced: list[tuple[int, int]] = []
    really_sync = os.fsync

    def sync(handle: int) -> None:
        status = os.fstat(handle)
        synced.append((status.st_dev, status.st_ino))
        really_sync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    sync_tree(root)

    ours = (root, root / "base", root / "base" / "1", root / "empty", root / "PG_VERSION", root / "base" / "1" / "112")
    assert sorted(synced) == sorted((path.stat().st_dev, path.stat().st_ino) for path in ours)
