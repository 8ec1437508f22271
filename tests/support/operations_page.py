"""The tables of docs/operations.md that say what the code says: settings and metrics.

`python -m tests.support.operations_page` writes them into the page, between its markers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY

# They register what they count.
import gateway.call_metrics
import gateway.crossings
import gateway.metrics
import policy.metrics
import regionjobs.metrics
from gateway.settings import GatewaySettings
from policy.controller.settings import ControllerSettings
from regiongate.cli.settings_options import default_text
from regionjobs.settings import RunnerSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.config import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
METRIC_MODULES = (gateway.call_metrics, gateway.crossings, gateway.metrics, policy.metrics, regionjobs.metrics)


def tables() -> dict[str, str]:
    """What the page must say, by the name of the marker."""
    in_gateway, in_controller = _settings(GatewaySettings), _settings(ControllerSettings)
    shared = [row for row in in_gateway if row in in_controller]
    head = ("setting", "default", "meaning")
    return {
        "settings of both": _table(head, shared),
        "settings of a gateway": _table(head, [row for row in in_gateway if row not in shared]),
        "settings of a controller": _table(head, [row for row in in_controller if row not in shared]),
        "settings of a runner": _table(head, [row for row in _settings(RunnerSettings) if row not in shared]),
        "metrics": _table(("metric", "type", "labels", "meaning"), _metrics()),
    }


def filled(page: str) -> str:
    """The page with the tables in their places; each must have one."""
    for name, table in tables().items():
        place = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, number = place.subn(lambda found, table=table: f"{found[1]}{table}{found[2]}", page)
        if number != 1:
            raise ValueError(f"the page has {number} places for: {name}")
    return page


def _settings(settings: type[Settings]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, info in settings.model_fields.items():
        default = "required" if info.is_required() else "false" if info.default is False else default_text(info)
        rows.append(
            (f"`{name}`", f"`{default}`" if default not in {"", "required"} else default, info.description or "")
        )
    return rows


def _metrics() -> list[tuple[str, ...]]:
    rows: set[tuple[str, ...]] = set()
    # The registry's public face has no names of labels before they have values.
    collectors: Iterable[Any] = REGISTRY._collector_to_names
    for collector in collectors:
        name = getattr(collector, "_name", "")
        if name.startswith("regiongate_"):
            kind = collector._type
            labels = ", ".join(collector._labelnames)
            suffix = "_total" if kind == "counter" else ""
            rows.add((f"`{name}{suffix}`", kind, labels, collector._documentation))
    return sorted(rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
