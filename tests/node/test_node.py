"""A client in another language, which has the protos and nothing else of ours; skipped where node is missing."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import regiongate.blocking

if TYPE_CHECKING:
    from tests.support.stack import RunningStack

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUF = "@bufbuild/buf@1.75.0"


def need(command: str) -> str:
    found = shutil.which(command)
    if found is None:
        pytest.skip(f"there is no {command} on this machine")
    return found


@pytest.fixture(scope="module")
def packages() -> None:
    """Installs the pinned packages beside the script."""
    npm = need("npm")
    lock, stamp = HERE / "package-lock.json", HERE / "node_modules" / ".package-lock.json"
    if stamp.exists() and stamp.stat().st_mtime >= lock.stat().st_mtime:
        return
    command = [npm, "ci", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        installed = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm could not fetch the packages in time")
    if installed.returncode:
        pytest.skip(f"npm could not fetch the packages: {installed.stderr.strip()[-200:]}")


def node(script: str, *arguments: str, stdin: str = "") -> object:
    ran = subprocess.run(
        [need("node"), script, *arguments],
        cwd=HERE,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_javascript_client_reads_writes_lists_and_is_denied_by_name(stack: RunningStack, packages: None):
    saw = node("client.js", str(ROOT / "proto"), stack.gateway("fra"), stack.gateway("sin"), "node-k1")
    exchanged = saw.pop("exchanged")
    assert saw == {
        "isReplayed": True,
        "name": "Grüße node-k1",
        "spend": "9007199254740993",
        "rule": "europe",
        "listed": ["node-k1"],
        "support": {"columns": ["spend"], "withheld": ["name"], "rule": "eu-support"},
        "denied": {
            "status": "PERMISSION_DENIED",
            "domain": "regiongate.dev",
            "reason": "ACCESS_DENIED",
            "metadata": saw["denied"]["metadata"],
        },
        "unknown": {
            "status": "INVALID_ARGUMENT",
            "domain": "regiongate.dev",
            "reason": "UNKNOWN_REGION",
            "metadata": saw["unknown"]["metadata"],
        },
        "isNewer": True,
        "gone": {
            "status": "NOT_FOUND",
            "domain": "regiongate.dev",
            "reason": "ROW_NOT_FOUND",
            "metadata": saw["gone"]["metadata"],
        },
    }
    assert saw["denied"]["metadata"]["rule"] == "europe"
    assert int(saw["denied"]["metadata"]["policy_revision"]) >= 1
    assert exchanged == {"1": "row", "2": "error", "3": "error"}


def test_javascript_agrees_on_the_shard_of_every_golden_vector():
    vectors = json.loads((ROOT / "tests/unit/policy/shard_vectors.json").read_text())["vectors"]
    asked = [{"keyType": v["key_type"], "key": str(v["key"]), "shards": v["shards"]} for v in vectors]
    assert node("shards.js", stdin=json.dumps(asked)) == [vector["shard"] for vector in vectors]


def curl(address: str, key: str) -> subprocess.CompletedProcess[str]:
    """Reads a row as the README shows it."""
    request = {"dataset": "customers", "regionCode": "DE", "key": {"stringKey": key}}
    options = ["--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(request)]
    url = f"http://{address}/regiongate.v1.RowService/GetRow"
    command = [need("npx"), "--yes", "--loglevel=error", BUF, "curl", *options, url]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npx could not fetch buf in time")
    if "npm error" in ran.stderr:
        pytest.skip("npx could not fetch buf")
    return ran


def test_a_command_line_client_needs_nothing_but_reflection(stack: RunningStack):
    with regiongate.blocking.connect(stack.gateway("fra")) as client:
        client.put("customers", "DE", "buf-k1", {"name": "Ada", "spend": 12})
    found = curl(stack.gateway("fra"), "buf-k1")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["row"]["columns"] == {"name": {"stringValue": "Ada"}, "spend": {"int64Value": "12"}}
    missing = curl(stack.gateway("fra"), "buf-none")
    assert missing.returncode != 0
    refusal = json.loads(missing.stderr)
    assert refusal["code"] == "not_found"
    assert b"ROW_NOT_FOUND" in base64.b64decode(refusal["details"][0]["value"] + "==")
