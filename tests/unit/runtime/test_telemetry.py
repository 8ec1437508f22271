"""Traces are cheap and whole, logs quote nobody (law L1), and the HTTP server says how the process is."""

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from runtime.supervisor.probe import fetch, read_health
from runtime.telemetry import spans as span_files
from runtime.telemetry.http import Readiness, serve_telemetry
from runtime.telemetry.logs import describe_exception, setup_logging
from runtime.telemetry.spans import read_spans
from runtime.telemetry.tracing import SpanKind, Tracing, is_sampled, set_failed, trace_id_of, traceparent_of

SAMPLED = f"00-{'a' * 32}-{'b' * 16}-01"
UNSAMPLED = f"00-{'a' * 32}-{'b' * 16}-00"


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def test_a_trace_crosses_processes_and_can_be_read_back(tmp_path: Path) -> None:
    ingress, owner = Tracing("gateway", "sin", 1, tmp_path), Tracing("gateway", "fra", 1, tmp_path)
    root = ingress.start("gateway.forward", kind=SpanKind.SERVER, root=True)
    child = owner.start("db.read", traceparent=traceparent_of(root), attributes={"regiongate.rows": 2}, links=[SAMPLED])
    assert root
    assert child
    set_failed(child, "DATABASE_UNAVAILABLE")
    child.end()
    root.end()
    ingress.shutdown()
    owner.shutdown()
    by_name = {span.name: span for span in read_spans(tmp_path, trace_id_of(traceparent_of(root)))}
    assert by_name["db.read"].parent_id == by_name["gateway.forward"].span_id
    assert (by_name["db.read"].idc, by_name["gateway.forward"].idc) == ("fra", "sin")
    assert by_name["db.read"].status == "DATABASE_UNAVAILABLE"
    assert by_name["db.read"].attributes == {"regiongate.rows": 2}
    assert by_name["db.read"].links == (f"{'a' * 32}-{'b' * 16}",)
    assert {path.name for path in tmp_path.iterdir()} == {"gateway-sin.jsonl", "gateway-fra.jsonl"}


def test_the_parents_decision_is_followed_whatever_the_ratio(tmp_path: Path) -> None:
    never, always = Tracing("a", "", 0, tmp_path), Tracing("b", "", 1, tmp_path)
    assert never.start("x", traceparent=SAMPLED)
    assert always.start("x", traceparent=UNSAMPLED, root=True) is None
    never.shutdown()
    always.shutdown()


def test_without_a_parent_only_a_root_may_start_a_trace(tmp_path: Path) -> None:
    tracing = Tracing("a", "", 1, tmp_path)
    assert tracing.start("x") is None
    assert tracing.start("x", traceparent="garbage" * 8 + "1") is None
    assert tracing.start("x", root=True)
    tracing.shutdown()


def test_without_anywhere_to_go_nothing_is_recorded() -> None:
    tracing = Tracing("a", "", 1, None)
    assert not tracing.is_on
    assert tracing.start("x", traceparent=SAMPLED) is None
    assert traceparent_of(None, SAMPLED) == SAMPLED
    tracing.shutdown()


def test_otel_variables_choose_the_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    tracing = Tracing("a", "", 0, tmp_path)
    assert tracing.start("x", root=True)
    tracing.shutdown()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not Tracing("a", "", 1, tmp_path).is_on


@pytest.mark.parametrize(
    ("flags", "expected"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)]
)
def test_the_sampled_flag_is_one_bit(flags: str, expected: bool) -> None:
    assert is_sampled(SAMPLED[:-2] + flags) is expected


def test_a_full_file_is_rotated_once_and_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_files, "ROTATE_BYTES", 1)
    for number in range(3):
        tracing = Tracing("a", "", 1, tmp_path)
        span = tracing.start(f"s{number}", root=True)
        assert span
        span.end()
        tracing.shutdown()
    assert [span.name for span in read_spans(tmp_path)] == ["s2"]


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"trace_id": "aa"}\n[]\n{"trace_id"')
    assert list(read_spans(tmp_path)) == []


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    handlers, level, hook = logging.root.handlers[:], logging.root.level, sys.excepthook
    setup_logging("gateway", "fra")
    yield stream
    logging.root.handlers, sys.excepthook = handlers, hook
    logging.root.setLevel(level)
    structlog.reset_defaults()


def test_every_line_carries_service_idc_and_trace(log_lines: io.StringIO) -> None:
    structlog.get_logger("x").info("served", rows=3, traceparent=SAMPLED)
    logging.getLogger("some.library").warning("thing %d", 7)
    ours, theirs = (json.loads(line) for line in log_lines.getvalue().splitlines())
    assert (ours["event"], ours["service"], ours["idc"], ours["trace_id"]) == ("served", "gateway", "fra", "a" * 32)
    assert "traceparent" not in ours
    assert (theirs["event"], theirs["level"]) == ("thing 7", "warning")


def test_law_l1_an_exceptions_message_is_not_logged(log_lines: io.StringIO) -> None:
    try:
        try:
            raise ValueError("Key (key)=(marker-value) already exists")
        except ValueError as error:
            raise ExceptionGroup("marker-value", [error]) from error
    except ExceptionGroup:
        structlog.get_logger("x").exception("failed")
        logging.getLogger("library").exception("failed")
    text = log_lines.getvalue()
    assert "marker-value" not in text
    assert "ValueError" in text
    assert "test_telemetry.py" in text


def test_messages_of_our_own_and_of_the_system_are_logged() -> None:
    assert "No such file" in describe_exception(FileNotFoundError(2, "No such file"))
    assert describe_exception(KeyError("secret")) == "KeyError"


async def test_the_http_server_answers_health_readiness_and_metrics() -> None:
    state = Readiness(is_ready=False, checks={"database": "unreachable", "etcd": "ok"})
    async with await serve_telemetry("127.0.0.1", 0, lambda: state) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert await fetch(f"{url}/healthz") == (200, b"ok\n")
        status, body = await fetch(f"{url}/metrics")
        assert status == 200
        assert b"# HELP python_info" in body
        health = await read_health(url)
        assert str(health) == "not ready (database: unreachable)"
        state = Readiness(is_ready=True)
        assert (await read_health(url)).is_ready
        with pytest.raises(OSError, match="in use"):
            await serve_telemetry("127.0.0.1", server.port, lambda: state)
    assert not (await read_health(url)).is_reachable


async def test_a_process_that_talks_something_else_counts_as_unreachable() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-hello\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert not (await read_health(f"http://127.0.0.1:{port}")).is_reachable
