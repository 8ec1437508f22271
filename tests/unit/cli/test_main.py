"""The shell: one line and one exit code for each failure, and nothing loaded that is not needed."""

import subprocess
import sys

import grpc
import pytest
import typer
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata
from pydantic import Field
from typer.testing import CliRunner

from gateway.status import DOMAIN, to_status
from policy.errors import AccessDenied, PeerUnreachable, PolicyRejected
from policy.findings import Finding, Severity
from regiongate.cli import main
from regiongate.cli.failures import CommandFailed, report
from regiongate.cli.settings_options import settings_command
from runtime.config import EtcdOptions, Settings


def test_the_help_lists_every_command_and_loads_none() -> None:
    code = "import sys; from regiongate.cli.main import run; run(['--help']); print([m for m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in main.COMMANDS:
        assert name in output
    for module in ("grpc", "sqlalchemy", "asyncpg", "pydantic", "regiongate.cli.up"):
        assert f"'{module}'" not in output


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_can_be_loaded_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert "Usage: regiongate " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["trace", "show"], ["up", "--base-port", "x"]])
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: USAGE: ")
    assert captured.err.count("\n") == 1


def test_a_domain_error_is_told_by_reason_with_rule_and_revision(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(AccessDenied("reading is not allowed", rule="china", policy_revision=7)) == 1
    assert capsys.readouterr().err == ("error: ACCESS_DENIED: reading is not allowed [rule china, policy_revision 7]\n")


def test_an_error_that_waiting_helps_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    report(PeerUnreachable("no gateway of fra answers"))
    assert "(a retry may succeed)" in capsys.readouterr().err


def test_every_finding_of_a_rejected_policy_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    findings = tuple(Finding(Severity.ERROR, "X", f"wrong {n}", file="p.yaml", line=n, column=1) for n in (3, 9))
    report(PolicyRejected("2 errors", findings=findings))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("p.yaml:3:1: error: wrong 3")
    assert lines[-1] == "error: POLICY_REJECTED: 2 errors"


def test_an_error_over_the_wire_is_told_like_a_local_one(capsys: pytest.CaptureFixture[str]) -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(domain=DOMAIN, reason="ACCESS_DENIED", metadata={"rule": "china"}))
    status = status_pb2.Status(code=7, message="no", details=[detail])
    trailers = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    assert report(AioRpcError(grpc.StatusCode.PERMISSION_DENIED, Metadata(), trailers, "no")) == 1
    assert capsys.readouterr().err == "error: ACCESS_DENIED: no [rule china]\n"


def test_every_finding_that_a_gateway_sends_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    findings = tuple(Finding(Severity.ERROR, "X", f"wrong {n}", file="p.yaml", line=n, column=1) for n in (3, 9))
    status = to_status(PolicyRejected("2 errors", findings=findings))
    trailers = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    report(AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, Metadata(), trailers, status.message))
    lines = capsys.readouterr().err.splitlines()
    assert [line[:14] for line in lines] == ["p.yaml:3:1: er", "p.yaml:9:1: er", "error: POLICY_"]


def test_an_error_without_details_is_told_by_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    report(AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "connection refused"))
    assert "UNAVAILABLE: connection refused" in capsys.readouterr().err


def test_a_hint_follows_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    report(CommandFailed("NO_TARGET", "nowhere to go", "give --target"))
    assert capsys.readouterr().err == "error: NO_TARGET: nowhere to go (give --target)\n"


class Example(Settings, EtcdOptions):
    """An example."""

    idc: str = Field(description="Name.")
    is_loud: bool = Field(default=False, description="Volume.")


def test_settings_become_options_with_help_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONGATE_IDC", "ams")
    monkeypatch.setenv("REGIONGATE_IS_LOUD", "true")
    seen: list[Example] = []
    app = typer.Typer()
    settings_command(app, Example, seen.append)
    assert CliRunner().invoke(app, ["--idc", "fra", "--etcd-endpoints", "a:1,b:2"]).exit_code == 0
    assert (seen[0].idc, seen[0].is_loud, seen[0].etcd_endpoints) == ("fra", True, ("a:1", "b:2"))
    assert CliRunner().invoke(app, ["--no-is-loud"]).exit_code == 0
    assert (seen[1].idc, seen[1].is_loud) == ("ams", False)
    assert "required; env: REGIONGATE_IDC)" in CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"}).output


def test_a_setting_that_does_not_stand_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()
    settings_command(app, Example, lambda _: None)
    result = CliRunner().invoke(app, ["--idc", "fra", "--cluster", "NOT LAWFUL"])
    assert result.exception
    assert report(result.exception) == 2
    assert "--cluster: String should match" in capsys.readouterr().err
