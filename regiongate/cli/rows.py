"""`regiongate rows`: reads and writes rows from the command line, through the SDK.

Values are JSON. What JSON lacks is written as text: bytes in base64, times by RFC 3339, decimals as strings.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from regiongate.cli.context import run_async
from regiongate.cli.entry import Entry, with_entry
from regiongate.cli.failures import CommandFailed
from regiongate.cli.output import Output, OutputOption, emit_json, emit_rows, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.client import Client, Decision, MoveReceipt, Receipt, Row

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Read and write rows.")

DatasetArgument = Annotated[str, typer.Argument(help="The dataset, as the policy names it.")]
RegionArgument = Annotated[str, typer.Argument(help="The RegionCode that the row is tagged with, such as DE.")]
KeyArgument = Annotated[str, typer.Argument(help="The row's key.")]
ColumnsOption = Annotated[str, typer.Option(help="Columns wanted, by comma; all when empty.", show_default=False)]
IfVersionOption = Annotated[
    int | None, typer.Option(min=0, help="Only if the row has this version; 0: only if there is none.")
]
RequestIdOption = Annotated[
    str, typer.Option(help="Repeating the command with the same id returns the first result.", show_default=False)
]


@app.command()
@with_entry
def get(
    entry: Entry,
    dataset: DatasetArgument,
    region_code: RegionArgument,
    key: KeyArgument,
    *,
    columns: ColumnsOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one row, and which rule let it through."""

    async def perform() -> Row:
        async with entry.client() as client:
            return await client.get(dataset, region_code, _read_key(client, dataset, key), columns=_split(columns))

    row = run_async(perform())
    if output is Output.JSON:
        emit_json(_plain_row(row))
        return
    _emit_table([row])
    _explain(row.decision)


@app.command()
@with_entry
def put(
    entry: Entry,
    dataset: DatasetArgument,
    region_code: RegionArgument,
    key: KeyArgument,
    values: Annotated[str, typer.Argument(help="The whole row as a JSON object, such as '{\"spend\": 12}'.")],
    *,
    if_version: IfVersionOption = None,
    request_id: RequestIdOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Write one row whole: columns that are not given become null."""
    columns = _parse_values(values)

    async def perform() -> Receipt:
        async with entry.client() as client:
            return await client.put(
                dataset,
                region_code,
                _read_key(client, dataset, key),
                _read_columns(client, dataset, columns),
                if_version=if_version,
                request_id=request_id,
            )

    _emit_receipt(run_async(perform()), output)


@app.command()
@with_entry
def delete(
    entry: Entry,
    dataset: DatasetArgument,
    region_code: RegionArgument,
    key: KeyArgument,
    *,
    if_version: IfVersionOption = None,
    request_id: RequestIdOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete one row; one that is not there counts as deleted."""

    async def perform() -> Receipt:
        async with entry.client() as client:
            return await client.delete(
                dataset,
                region_code,
                _read_key(client, dataset, key),
                if_version=if_version,
                request_id=request_id,
            )

    _emit_receipt(run_async(perform()), output)


@app.command()
@with_entry
def move(
    entry: Entry,
    dataset: DatasetArgument,
    region_code: RegionArgument,
    key: KeyArgument,
    to_region_code: Annotated[str, typer.Argument(help="The RegionCode that the row is to have, such as FR.")],
    *,
    if_version: Annotated[int | None, typer.Option(min=1, help="Only if the row has this version.")] = None,
    request_id: RequestIdOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Give one row another RegionCode, and with it another lawful home."""

    async def perform() -> MoveReceipt:
        async with entry.client() as client:
            return await client.move(
                dataset,
                region_code,
                _read_key(client, dataset, key),
                to_region_code,
                if_version=if_version,
                request_id=request_id,
            )

    receipt = run_async(perform())
    plain: dict[str, object] = {"version": receipt.version, "update_time": receipt.update_time}
    if output is Output.JSON:
        decisions = {"from_decision": asdict(receipt.from_decision), "to_decision": asdict(receipt.to_decision)}
        emit_json(plain | decisions)
        return
    emit_rows([plain], ("version", "update_time"), output)
    _explain(receipt.from_decision, f"left {region_code}: ")
    _explain(receipt.to_decision, f"came to {to_region_code}: ")


@app.command("list")
@with_entry
def list_rows(
    entry: Entry,
    dataset: DatasetArgument,
    region_code: RegionArgument,
    *,
    filter: Annotated[str, typer.Option(help='Such as: spend > 10 AND name != "".')] = "",  # noqa: A002 (AIP-160)
    columns: ColumnsOption = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Most rows to show.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List a RegionCode's rows in key order, over all its shards."""

    async def perform() -> tuple[list[Row], bool]:
        rows: list[Row] = []
        async with entry.client() as client:
            listing = client.list(
                dataset, region_code, filter=filter, columns=_split(columns), page_size=min(limit + 1, 1000)
            )
            async for row in listing:
                if len(rows) == limit:
                    return rows, True
                rows.append(row)
        return rows, False

    rows, has_more = run_async(perform())
    if output is Output.JSON:
        emit_json([_plain_row(row) for row in rows])
    else:
        _emit_table(rows)
        if rows:
            _explain(rows[0].decision)
    if has_more:
        say(f"there are more than {limit} rows; see --limit")


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _parse_values(text: str) -> dict[str, Any]:
    try:
        parsed: object = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        # Without the text: it is a row's content (law L1).
        raise CommandFailed("BAD_VALUES", "the values are not a JSON object", "such as '{\"spend\": 12}'")
    return cast("dict[str, Any]", parsed)


def _read_key(client: Client, dataset: str, key: str) -> str | int:
    """The key as the dataset has it; one of an unknown dataset stays text, and the gateway refuses the dataset."""
    known = client.datasets.get(dataset)
    if known is None or known.key_type == "string":
        return key
    try:
        return int(key)
    except ValueError:
        raise CommandFailed("BAD_KEY", f"keys of {dataset} are {known.key_type}") from None


def _read_columns(client: Client, dataset: str, columns: dict[str, Any]) -> dict[str, Any]:
    from gateway.client.values import from_text  # noqa: PLC0415 (loaded with the client)

    known = client.datasets.get(dataset)
    types: Mapping[str, str] = known.column_types if known else {}
    read: dict[str, Any] = {}
    for name, value in columns.items():
        kind = types.get(name, "")
        try:
            read[name] = from_text(kind, value)
        except ValueError:
            raise CommandFailed("BAD_VALUES", f"column {name} is not {kind} as JSON has it") from None
    return read


def _plain_row(row: Row) -> dict[str, object]:
    from gateway.client.values import to_text  # noqa: PLC0415 (loaded with the client)

    return {
        "region_code": row.region_code,
        "key": row.key,
        "values": {name: to_text(value) for name, value in row.values.items()},
        "version": row.version,
        "update_time": row.update_time,
        "decision": asdict(row.decision),
    }


def _emit_table(rows: list[Row]) -> None:
    from gateway.client.values import to_text  # noqa: PLC0415 (loaded with the client)

    lines: list[dict[str, object]] = []
    names: dict[str, None] = {}
    for row in rows:
        cells = {name: to_text(value) for name, value in row.values.items()}
        names.update(dict.fromkeys(cells))
        lines.append(
            {
                **{name: json.dumps(cell) if isinstance(cell, (dict, list)) else cell for name, cell in cells.items()},
                "REGION": row.region_code,
                "KEY": row.key,
                "VERSION": row.version,
                "UPDATED": row.update_time,
            }
        )
    # Columns of a dataset are lower case, so ours cannot be theirs.
    emit_rows(lines, ("REGION", "KEY", *sorted(names), "VERSION", "UPDATED"), Output.TABLE)


def _emit_receipt(receipt: Receipt, output: Output) -> None:
    plain = {"version": receipt.version, "update_time": receipt.update_time, "decision": asdict(receipt.decision)}
    if output is Output.JSON:
        emit_json(plain)
        return
    emit_rows([plain], ("version", "update_time"), output)
    _explain(receipt.decision)


def _explain(decision: Decision, what: str = "") -> None:
    withheld = f"; withheld: {', '.join(decision.withheld)}" if decision.withheld else ""
    # A list's rows may be owned by several.
    owner = f"{decision.owner_idc} owns it; " if decision.owner_idc else ""
    say(
        f"{what}{owner}asked from {decision.asking_jurisdiction}, decided by rule {decision.rule}"
        f" of policy revision {decision.policy_revision}{withheld}"
    )
