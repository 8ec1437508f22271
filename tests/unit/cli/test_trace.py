"""Traces are drawn whole: nothing recorded stays hidden, failures stand out."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regiongate.cli.main import run
from regiongate.cli.trace_tree import build_tree, lay_out, summarise, walk
from runtime.telemetry.spans import SpanRecord

TRACE = "a" * 32


def span(span_id: str, parent_id: str, name: str, idc: str, start: int, end: int, **more: object) -> SpanRecord:
    return SpanRecord(TRACE, span_id, parent_id, name, "internal", "gateway", idc, start, end, **more)


SPANS = [
    span("2", "1", "gateway.serve", "fra", 1_000_000, 3_000_000),
    span("3", "2", "db.read", "fra", 1_500_000, 2_500_000, status="DATABASE_UNAVAILABLE", attributes={"db.rows": 2}),
    span("1", "0", "gateway.forward", "sin", 0, 4_000_000),
]


def test_a_tree_hangs_children_below_parents_in_order_of_time() -> None:
    lines = lay_out(build_tree(SPANS))
    assert [line.tree for line in lines] == ["gateway.forward", "└─ gateway.serve", "   └─ db.read"]
    assert [line.place for line in lines] == ["sin gateway", "fra gateway", "fra gateway"]
    assert [line.offset_ms for line in lines] == [0, 1, 1.5]
    assert [line.duration_ms for line in lines] == [4, 2, 1]
    assert lines[2].details == "failed: DATABASE_UNAVAILABLE  db.rows=2"
    assert lines[2].is_failed


def test_a_span_whose_parent_was_lost_is_a_root() -> None:
    roots = build_tree(SPANS[:2])
    assert [root.span.span_id for root in roots] == ["2"]


def test_a_span_says_what_it_is_linked_to_or_shared_with() -> None:
    links = ("b" * 32 + "-1", "b" * 32 + "-2", "c" * 32 + "-3")
    shared = span("2", "1", "db.read", "fra", 0, 1, links=links)
    caused = span("1", "", "job.run", "fra", 0, 2, links=links)
    assert [line.details for line in lay_out(build_tree([caused, shared]))] == [
        "linked to trace bbbbbbbb, cccccccc",
        "shared with 3 other calls",
    ]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 50), st.integers(0, 50)), max_size=12))
def test_each_span_is_drawn_at_most_once_and_bars_fit(shapes: list[tuple[int, int, int, int]]) -> None:
    spans = [span(str(own), str(parent), "x", "fra", at, at + took) for own, parent, at, took in shapes if own > parent]
    roots = build_tree(spans)
    drawn = [each.span_id for root in roots for each in walk(root)]
    assert sorted(drawn) == sorted({each.span_id for each in spans})
    assert all(len(line.bar.strip()) > 0 and len(line.bar) <= 24 for line in lay_out(roots))


def test_a_summary_names_the_idcs_in_the_order_of_the_call() -> None:
    (summary,) = summarise(SPANS)
    assert (summary.root, summary.idcs, summary.spans, summary.status, summary.duration_ms) == (
        "gateway.forward",
        ("sin", "fra"),
        3,
        "DATABASE_UNAVAILABLE",
        4.0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "gateway-fra.jsonl").write_text("".join(json.dumps(asdict(s)) + "\n" for s in SPANS))
    return tmp_path


def test_show_draws_a_trace_by_the_start_of_its_id(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "show", TRACE[:8], "--data-dir", str(folder)]) == 0
    output = capsys.readouterr().out
    assert f"trace {TRACE}" in output
    assert "└─ gateway.serve" in output


def test_show_as_json_nests_the_spans(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "show", TRACE, "-o", "json", "--data-dir", str(folder)]) == 0
    (root,) = json.loads(capsys.readouterr().out)
    assert root["children"][0]["children"][0]["name"] == "db.read"


def test_list_shows_each_trace(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "list", "-o", "json", "--data-dir", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["trace_id"] == TRACE


@pytest.mark.parametrize(("trace_id", "reason"), [("b" * 32, "TRACE_NOT_FOUND"), ("xyz", "BAD_TRACE_ID")])
def test_a_trace_that_is_not_there_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], trace_id: str, reason: str
) -> None:
    assert run(["trace", "show", trace_id, "--data-dir", str(folder)]) == 1
    assert f"error: {reason}: " in capsys.readouterr().err
