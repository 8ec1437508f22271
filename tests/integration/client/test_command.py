"""`regiongate rows`, as a shell sees it."""

from __future__ import annotations

import asyncio
import json

from regiongate.cli.main import run
from tests.integration.client.cluster import running

VALUES = {
    "name": "Ada",
    "spend": 12,
    "score": 1.5,
    "active": True,
    "photo": "AP8=",
    "born": "1815-12-10T00:00:00Z",
    "balance": "-12.50",
    "extra": {"tags": ["a"]},
}


async def rows(*arguments: str) -> int:
    return await asyncio.to_thread(run, ["rows", *arguments])


async def test_a_row_goes_in_and_comes_out_as_json_of_every_type(capsys):
    async with running() as sites:
        target = ("--target", sites["fra"].address, "-o", "json")
        assert await rows("put", "customers", "DE", "k", json.dumps(VALUES), "--if-version", "0", *target) == 0
        version = json.loads(capsys.readouterr().out)["version"]
        assert await rows("get", "customers", "DE", "k", *target, "--purpose", "support") == 0
        row = json.loads(capsys.readouterr().out)
        assert (row["values"], row["version"], row["decision"]["rule"]) == (VALUES, version, "europe")
        assert await rows("get", "customers", "DE", "k", "--columns", "name, spend", *target) == 0
        assert set(json.loads(capsys.readouterr().out)["values"]) == {"name", "spend"}
        assert await rows("delete", "customers", "DE", "k", "--if-version", str(version), *target) == 0
        assert await rows("get", "customers", "DE", "k", *target) == 1
        assert "error: ROW_NOT_FOUND: " in capsys.readouterr().err


async def test_rows_are_listed_as_a_table_with_the_rule_on_stderr(capsys):
    async with running() as sites:
        target = ("--target", sites["sin"].address)
        for key in ("a", "b", "c"):
            assert await rows("put", "customers", "DE", key, '{"spend": 1}', *target) == 0
        capsys.readouterr()
        assert await rows("list", "customers", "DE", "--limit", "2", *target) == 0
        out, err = capsys.readouterr()
        assert [line.split()[:3] for line in out.splitlines()] == [
            ["REGION", "KEY", "SPEND"],
            ["DE", "a", "1"],
            ["DE", "b", "1"],
        ]
        assert "rule europe of policy revision 7" in err
        assert "more than 2 rows" in err


async def test_int64_keys_are_read_as_numbers(capsys):
    async with running() as sites:
        target = ("--target", sites["fra"].address, "-o", "json")
        assert await rows("put", "orders", "DE", "12", '{"name": "x"}', *target) == 0
        assert await rows("get", "orders", "DE", "12", *target) == 0
        assert json.loads(capsys.readouterr().out.split("}\n", 2)[-1] or "{}") is not None
        assert await rows("get", "orders", "DE", "twelve", *target) == 1
        assert "error: BAD_KEY: keys of orders are int64" in capsys.readouterr().err


async def test_a_refusal_is_one_line_with_rule_and_revision_and_exit_code_1(capsys):
    async with running() as sites:
        assert await rows("get", "customers", "CN", "k", "--target", sites["sin"].address) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ACCESS_DENIED: ")
        assert "china" in err
        assert "policy_revision 7" in err


async def test_wrong_values_are_named_by_column_and_never_repeated_law_l1(capsys):
    async with running() as sites:
        target = ("--target", sites["fra"].address)
        for values, told in (("[1]", "BAD_VALUES"), ('{"born": "marker"}', "born"), ('{"spend": "marker"}', "spend")):
            assert await rows("put", "customers", "DE", "k", values, *target) == 1
            err = capsys.readouterr().err
            assert told in err
            assert "marker" not in err
        assert not sites["fra"].world.rows


async def test_wrong_usage_has_exit_code_2(capsys):
    assert await rows("get", "customers") == 2
    assert await rows("get", "customers", "DE", "k", "--timeout", "-1") == 2
    assert "error: USAGE: " in capsys.readouterr().err
