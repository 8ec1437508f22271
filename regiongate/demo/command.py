"""Runs a `regiongate` command as a person would, and shows what it prints."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from regiongate.demo import show

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = 60.0


async def run_command(words: Sequence[str], target: str) -> tuple[int, str]:
    """Runs `regiongate WORDS --target TARGET`, prints the command and its output, returns its exit code and output."""
    show.line(f"$ regiongate {' '.join(words)}", style="bold")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "regiongate.cli.main", *words, "--target", target),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace").rstrip()
    for line in text.splitlines():
        show.line(f"  {line}")
    return process.returncode or 0, text
