"""Asks a process of the stack how it is, over its telemetry port, without an HTTP library."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_BODY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Health:
    """What `/readyz` said."""

    is_reachable: bool
    is_ready: bool = False
    checks: Mapping[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        if not self.is_reachable:
            return "does not answer"
        missing = [f"{name}: {state}" for name, state in self.checks.items() if state != "ok"]
        return "ready" if self.is_ready else "not ready" + (f" ({', '.join(missing)})" if missing else "")


async def fetch(url: str, timeout: float = 2.0) -> tuple[int, bytes]:
    """GETs a small page of this machine; returns status and body.

    Raises `OSError` (also for a deadline that has passed) when nothing sensible answers.
    """
    parts = urlsplit(url)
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            request = f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n"
            writer.write(request.encode())
            await writer.drain()
            answer = await _read_all(reader)
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = head.split(None, 2)
    if len(fields) < 2 or not fields[1].isdigit():
        raise ConnectionError("not an HTTP answer")
    return int(fields[1]), body


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await reader.read(65536):
        size += len(chunk)
        if size > _MAX_BODY:
            raise ConnectionError("the answer is too large")
        chunks.append(chunk)
    return b"".join(chunks)


async def read_health(metrics_url: str) -> Health:
    """Asks `/readyz` below the process's telemetry URL."""
    try:
        status, body = await fetch(f"{metrics_url}/readyz")
        data = cast("dict[str, Any]", json.loads(body))
        return Health(is_reachable=True, is_ready=status == 200, checks=dict(data.get("checks", {})))
    except (OSError, ValueError, AttributeError):
        return Health(is_reachable=False)
