"""`regiongate trace`: recorded traces of a stack, from the JSON lines in its folder."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from regiongate.cli.context import DEFAULT_DATA_DIR, DataDirOption
from regiongate.cli.failures import CommandFailed
from regiongate.cli.output import Output, OutputOption, emit_json, emit_rows, say, stdout
from regiongate.cli.trace_tree import build_tree, lay_out, summarise
from runtime.telemetry.spans import read_spans

if TYPE_CHECKING:
    from pathlib import Path

    from regiongate.cli.trace_tree import Node, TraceLine

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show recorded traces.")

_MAX_SPANS = 200_000


@app.command()
def show(
    trace_id: Annotated[str, typer.Argument(help="The trace's id; its first 8 characters are enough.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    output: OutputOption = Output.TABLE,
) -> None:
    """Draw one trace as a tree, with IDC names and times."""
    wanted = trace_id.lower()
    if not re.fullmatch(r"[0-9a-f]{8,32}", wanted):
        raise CommandFailed("BAD_TRACE_ID", "a trace id is 32 hexadecimal digits, or the first 8 or more of them")
    spans = [span for span in read_spans(_folder(data_dir)) if span.trace_id.startswith(wanted)]
    if not spans:
        raise CommandFailed("TRACE_NOT_FOUND", f"no span of trace {wanted} in {_folder(data_dir)}", "see `trace list`")
    if len({span.trace_id for span in spans}) > 1:
        raise CommandFailed("BAD_TRACE_ID", "several traces begin like that", "give more digits")
    roots = build_tree(spans)
    if output is Output.JSON:
        emit_json([_plain(root) for root in roots])
    else:
        draw(spans[0].trace_id, lay_out(roots))


@app.command("list")
def list_traces(
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most traces to show.")] = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the newest traces."""
    newest = deque(read_spans(_folder(data_dir)), maxlen=_MAX_SPANS)
    rows = [{**asdict(summary), "duration_ms": round(summary.duration_ms, 3)} for summary in summarise(newest)[:limit]]
    emit_rows(rows, ("trace_id", "start", "duration_ms", "root", "idcs", "spans", "status"), output)
    if not rows:
        say(f"nothing is recorded in {_folder(data_dir)}; `regiongate up --trace-sample-ratio 1` records every call")


def draw(trace_id: str, lines: list[TraceLine]) -> None:
    """Prints the laid-out trace."""
    from rich.table import Table  # noqa: PLC0415 (JSON needs no table)
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold", title=f"trace {trace_id}", title_justify="left")
    for name in ("SPAN", "WHERE"):
        table.add_column(name, no_wrap=True)
    for name in ("AT ms", "TOOK ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("DETAILS", overflow="fold")
    for line in lines:
        style = "red" if line.is_failed else "green"
        table.add_row(
            Text(line.tree),
            Text(line.place, style="cyan"),
            f"{line.offset_ms:.2f}",
            f"{line.duration_ms:.2f}",
            Text(line.bar, style=style),
            Text(line.details, style="red" if line.is_failed else ""),
        )
    stdout().print(table)


def _folder(data_dir: Path) -> Path:
    return data_dir / "traces"


def _plain(node: Node) -> dict[str, object]:
    return {**asdict(node.span), "children": [_plain(child) for child in node.children]}
