import re
from pathlib import Path

import pytest

from policy.loading import load_policy
from tests.unit.policy.documents import bend, findings_of

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL).group(1)


def test_the_first_policy_of_the_page_stands_without_a_warning():
    assert {finding.severity for finding in load_policy(EXAMPLE).findings} == {"info"}


@pytest.mark.parametrize("line", re.findall(r"^policy\.yaml:.*$", PAGE, re.MULTILINE))
def test_the_findings_that_the_page_shows_are_real(line):
    broken = bend(("fra: 60", "frx: 60"), ("regions: [SG]", "regions: [SG, FI]"), text=EXAMPLE)
    assert line in [str(finding).replace("p.yaml", "policy.yaml", 1) for finding in findings_of(broken)]


def test_the_page_lists_every_finding_that_the_code_can_make():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "policy").glob("*.py")]
    found = {
        code
        for source in sources
        for pattern in (
            r"report\.\w+\(\s*\"([A-Z_]+)\"",
            r"\bcode(?:, message)? = \"([A-Z_]+)\"",
            r"yield \"([A-Z_]+)\"",
        )
        for code in re.findall(pattern, source)
    } | {"SCHEMA_CHANGE"}
    assert len(found) > 25
    assert {code for code in found if f"`{code}`" not in PAGE} == set()
