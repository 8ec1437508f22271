"""The demo's traces: of one read that crosses a border, and of one shard's way to another country.

Each process writes its spans within a second; a trace is shown when what it must have is there.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from regiongate.cli.trace import draw
from regiongate.cli.trace_tree import build_tree, lay_out, walk
from runtime.telemetry.spans import read_spans
from runtime.telemetry.tracing import REGION_CODE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from regiongate.cli.trace_tree import Node
    from runtime.telemetry.spans import SpanRecord

SPAN_SECONDS = 8.0
SHARD = "regiongate.shard"


async def wait_for_spans(
    data_dir: Path, trace_id: str, is_complete: Callable[[Sequence[SpanRecord]], bool]
) -> list[SpanRecord]:
    """The trace's spans as soon as they are complete, or what there is of them after a while."""
    end = time.monotonic() + SPAN_SECONDS
    while True:
        spans = list(read_spans(data_dir / "traces", trace_id))
        if is_complete(spans) or time.monotonic() > end:
            return spans
        await asyncio.sleep(0.1)


def show_spans(trace_id: str, spans: Sequence[SpanRecord]) -> None:
    """Draws the trace as a tree."""
    draw(trace_id, lay_out(build_tree(spans)))


def of_shard(spans: Sequence[SpanRecord], region_code: str, shard: int) -> list[SpanRecord]:
    """The spans of one shard's move: those that name it, all below them, and the way up to the root."""
    kept: dict[str, SpanRecord] = {}
    for root in build_tree(spans):
        _keep(kept, root, (), (region_code, shard))
    return list(kept.values())


def _keep(kept: dict[str, SpanRecord], node: Node, above: tuple[SpanRecord, ...], wanted: tuple[str, int]) -> None:
    attributes = node.span.attributes
    if (attributes.get(REGION_CODE), attributes.get(SHARD)) == wanted:
        kept.update((span.span_id, span) for span in (*above, *walk(node)))
        return
    for child in node.children:
        _keep(kept, child, (*above, node.span), wanted)


def processes(spans: Sequence[SpanRecord]) -> list[str]:
    """The processes that the spans come from, in the order of their first."""
    return list(
        dict.fromkeys(" ".join(filter(None, (s.service, s.idc))) for s in sorted(spans, key=lambda s: s.start_ns))
    )
