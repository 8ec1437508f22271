"""Generates the committed gRPC stubs with a pinned generator, in an environment of its own.

Stubs refuse to load on a grpcio older than their generator, and the newest generator would pin the newest grpcio; so
the generator has its own lock file (`proto/requirements.lock`) and its own virtual environment.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-protos"
PACKAGES = {
    "regiongate/v1": ROOT / "proto",
    "runtime/etcd/pb": ROOT,
}
"""Package folder of the stubs -> include root of their protos."""


def _generator() -> Path:
    """Returns the generator's Python, installing it on first use."""
    python = ENVIRONMENT / "bin" / "python"
    lock = ROOT / "proto" / "requirements.lock"
    stamp = ENVIRONMENT / ".installed"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        install = [str(ROOT / ".venv/bin/uv"), "pip", "install", "--quiet", "--require-hashes", "--python", str(python)]
        subprocess.run([*install, "--requirement", str(lock)], check=True)
        stamp.touch()
    return python


def generate(target: Path) -> list[Path]:
    """Writes all stubs below `target`, laid out as in the repository, and returns their relative paths."""
    python = _generator()
    for package, include in PACKAGES.items():
        sources = sorted((include / package).glob("*.proto"))
        if not sources:
            continue
        outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        plugins = [f"--plugin=protoc-gen-{kind}={ENVIRONMENT}/bin/protoc-gen-{kind}" for kind in ("mypy", "mypy_grpc")]
        command = [str(python), "-m", "grpc_tools.protoc", f"-I{include}", *plugins, *outputs]
        subprocess.run([*command, *map(str, sources)], check=True, cwd=ROOT)
    return sorted(path.relative_to(target) for path in target.rglob("*.py*"))


def differences() -> list[str]:
    """Returns the stubs that are not what the generator makes of the protos now."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        made = generate(target)
        return [str(p) for p in made if not (ROOT / p).exists() or not filecmp.cmp(target / p, ROOT / p, shallow=False)]


def main() -> None:
    """Writes or checks the stubs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write the stubs into the repository")
    if not parser.parse_args().write:
        stale = differences()
        if stale:
            sys.exit(f"stale stubs, run `make protos`: {', '.join(stale)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        for path in generate(target):
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target / path, ROOT / path)


if __name__ == "__main__":
    main()
