"""What the demo prints: sections, tables and a closing report, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from regiongate.cli.output import stdout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from regiongate.demo.crossings import Answer
    from regiongate.demo.placement import Placement

_STYLES = {"allowed": "green", "withheld": "yellow", "denied": "red"}


def section(number: int, title: str) -> None:
    """Begins a part."""
    stdout().print()
    stdout().print(Text(f"{number}. {title}", style="bold"))


def line(text: str, style: str = "") -> None:
    """One plain sentence."""
    stdout().print(Text(f"   {text}", style=style))


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def placement(found: Placement, jurisdictions: Mapping[str, str]) -> None:
    """Rows per IDC and RegionCode, the largest first."""
    table = _table("IDC", "JURISDICTION", "ROWS", "REGIONCODES", "ROWS OF EACH", right=("ROWS", "REGIONCODES"))
    for idc, counter in found.rows.items():
        each = "  ".join(f"{code}:{count:,}" for code, count in counter.most_common())
        table.add_row(idc, jurisdictions[idc], f"{counter.total():,}", str(len(counter)), each)
    stdout().print(table)


def crossings(answers: Sequence[Answer], jurisdictions: Mapping[str, str]) -> None:
    """What became of each read, and by which rule."""
    table = _table("ENTERS AT", "ASKS FOR", "PURPOSE", "OUTCOME", "RULE", "REVISION", "OWNER", "WITHHELD")
    for answer in answers:
        crossing = answer.crossing
        style = _STYLES[answer.outcome] if answer.is_expected else "bold red"
        table.add_row(
            f"{crossing.entry_idc} ({jurisdictions[crossing.entry_idc]})",
            crossing.region_code,
            crossing.purpose or "-",
            Text(answer.outcome if answer.is_expected else f"{answer.outcome}, not {crossing.expected}", style=style),
            answer.rule,
            str(answer.policy_revision),
            answer.owner_idc or "-",
            ", ".join(answer.withheld) or "-",
        )
    stdout().print(table)


def report(facts: Mapping[str, str], faults: Sequence[str]) -> None:
    """The closing report: what was seen, and what is wrong, if anything."""
    table = _table("WHAT", "SEEN")
    for what, seen in facts.items():
        table.add_row(what, seen)
    stdout().print(table)
    for fault in faults:
        line(f"WRONG: {fault}", style="bold red")
    stdout().print()
    if faults:
        stdout().print(Text("FAILED: see above", style="bold red"))
    else:
        stdout().print(Text("All rows lie where their law says.", style="bold green"))
