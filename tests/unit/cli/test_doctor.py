"""The doctor names what is wrong and what to do about it, and fails when anything is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from regiongate.cli.main import run
from runtime.stack_file import IdcEntry, ProcessEntry, StackFile
from runtime.supervisor.ports import choose_ports


def examine(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = run(["doctor", "--data-dir", str(data_dir), "-o", "json"])
    return code, {check["check"]: check for check in json.loads(capsys.readouterr().out)}


def stack_file(*processes: ProcessEntry) -> StackFile:
    etcd, database, metrics = choose_ports(["a", "b", "c"], {}).values()
    entry = IdcEntry(
        "127.0.0.1:1", "127.0.0.1:2", f"postgresql://u:secret@127.0.0.1:{database}/d", f"http://127.0.0.1:{metrics}"
    )
    return StackFile("default", (f"127.0.0.1:{etcd}",), {"fra": entry}, processes)


def test_without_a_stack_the_programs_and_the_folder_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, checks = examine(tmp_path, capsys)
    assert code == 0
    assert checks["stack"]["hint"] == "start one with `regiongate up`"
    assert checks["etcd binary"]["found"].startswith("3.")


def test_a_process_that_is_gone_fails_and_nothing_else_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stack_file(ProcessEntry("gateway-fra", "gateway", "fra", gone.pid)).save(tmp_path)
    code, checks = examine(tmp_path, capsys)
    assert code == 1
    assert checks["gateway-fra"]["state"] == "FAIL"
    assert "database of fra" not in checks


def test_every_part_that_does_not_answer_is_named_and_no_password_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = stack_file()
    file = StackFile(
        file.cluster,
        file.etcd_endpoints,
        file.idcs,
        (ProcessEntry("gateway-fra", "gateway", "fra", os.getpid(), file.idcs["fra"].metrics),),
    )
    file.save(tmp_path)
    code, checks = examine(tmp_path, capsys)
    assert code == 1
    failed = {name for name, check in checks.items() if not check["is_ok"]}
    assert failed == {"etcd", "database of fra", "gateway-fra readiness", "policy revision"}
    assert "secret" not in json.dumps(checks)


def test_a_file_that_is_no_stack_file_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stack.json").write_text("[]")
    code, checks = examine(tmp_path, capsys)
    assert code == 1
    assert "not a stack file" in checks["stack"]["found"]
