"""What the demo prints: sections, tables and a closing report, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from regiongate.cli.output import stdout
from regiongate.demo.figures import over_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from regiongate.demo.counting import Standing
    from regiongate.demo.crossings import Answer
    from regiongate.demo.figures import Counted
    from regiongate.demo.placement import Placement
    from regiongate.demo.rollout import MovedRegion

NO_LAW = "none yet"
"""Jurisdiction of an IDC that the policy does not know."""
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
        table.add_row(idc, jurisdictions.get(idc, NO_LAW), f"{counter.total():,}", str(len(counter)), each)
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


def diff(lines: Sequence[str]) -> None:
    """The changed lines of a text."""
    for text in lines:
        line(text, style="green" if text.startswith("+") else "red")


def moves(regions: Sequence[MovedRegion]) -> None:
    """The finished moves, and how long each held the writes of its shard."""
    right = ("SHARDS", "ROWS", "STALL ms (MEDIAN)", "(LONGEST)")
    table = _table("REGIONCODE", "FROM", "TO", *right, right=right)
    for it in regions:
        stalls = f"{it.median_stall_ms:.0f}", f"{it.longest_stall_ms:.0f}"
        table.add_row(it.region_code, it.source, it.target, str(it.shards), f"{it.rows:,}", *stalls)
    stdout().print(table)


def remains(counts: Mapping[str, Mapping[str, int]], codes: Sequence[str]) -> None:
    """What each database holds of some RegionCodes, by table."""
    table = _table("IDC", f"ROWS OF {', '.join(codes)}, IN ANY TABLE")
    for idc, tables in counts.items():
        table.add_row(idc, "  ".join(f"{name}:{rows:,}" for name, rows in tables.items()) or "none")
    stdout().print(table)


def job(standing: Standing, counted: Mapping[str, Counted]) -> None:
    """What the job holds and how it has run, by IDC."""
    right = ("COUNTRIES", "PLACES", "POPULATION", "CHANGES HANDLED", "RUNS", "STILL TO DO")
    table = _table("IDC", *right, right=right)
    for it in standing.jobs:
        by_region = counted[it.idc].by_region.values()
        table.add_row(
            it.idc,
            f"{len(by_region):,}",
            f"{sum(figures.places for figures in by_region):,}",
            f"{sum(figures.population for figures in by_region):,}",
            f"{it.rows_handled:,}",
            f"{len(standing.runs_in(it.idc)):,}",
            f"{it.lag_rows:,}" if it.lag_rows else "none",
        )
    stdout().print(table)


def countries(codes: Sequence[str], counted: Mapping[str, Counted], names: Mapping[str, str]) -> None:
    """The job's figures of some countries, and in which databases they lie."""
    table = _table("COUNTRY", "COUNTED IN", "PLACES", "POPULATION", "LARGEST PLACE", right=("PLACES", "POPULATION"))
    totals = over_all(counted)
    for code in codes:
        idcs = [idc for idc, it in counted.items() if code in it.by_region]
        it = totals[code]
        largest = f"{names.get(it.largest_key, it.largest_key)} ({it.largest:,})"
        table.add_row(code, ", ".join(idcs), f"{it.places:,}", f"{it.population:,}", largest)
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
