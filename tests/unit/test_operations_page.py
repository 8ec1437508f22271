"""What docs/operations.md says of settings and metrics is what the code says."""

from __future__ import annotations

import re

from tests.support.operations_page import PAGE, filled
from tests.support.stubs import ROOT


def test_the_page_has_every_setting_and_every_metric_as_the_code_has_them() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page), "write it anew: python -m tests.support.operations_page"


def test_every_module_with_metrics_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for package in ("gateway", "policy", "regionjobs", "rowstore", "runtime", "regiongate"):
        for path in (ROOT / package).rglob("*.py"):
            for name in re.findall(r"(?:Counter|Gauge|Histogram)\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")):
                assert f"`{name}" in page, f"{name} of {path} is not explained"
