"""The SDK and the command against the real stack: gateways, etcd, PostgreSQL, the demo's policy."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

import regiongate
from regiongate.cli.main import run
from regiongate.errors import AccessDenied, InvalidValue, RowNotFound, UnknownRegion, VersionConflict
from runtime.telemetry.spans import read_spans
from runtime.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from tests.support.stack import RunningStack


async def test_rows_live_where_the_law_says_and_come_back_with_the_rule(stack: RunningStack):
    async with regiongate.connect(stack.gateway("fra")) as client:
        receipts = await asyncio.gather(
            *(client.put("customers", "DE", f"sdk-a-{n}", {"name": "Ada", "spend": n}) for n in range(200))
        )
        assert {receipt.decision.owner_idc for receipt in receipts} == {"fra", "ams"}
        rows = await asyncio.gather(*(client.get("customers", "DE", f"sdk-a-{n}") for n in range(200)))
        assert [row.values["spend"] for row in rows] == list(range(200))
        assert [row.version for row in rows] == [receipt.version for receipt in receipts]
        assert {row.decision.rule for row in rows} == {"europe"}
        listed = [
            row async for row in client.list("customers", "DE", filter='spend < 50 AND name = "Ada"', page_size=7)
        ]
        ours = [row.key for row in listed if str(row.key).startswith("sdk-a-")]
        assert ours == sorted(f"sdk-a-{n}" for n in range(50))


async def test_who_owns_a_row_is_known_at_once_and_agrees_with_where_it_lies(stack: RunningStack):
    async with regiongate.connect(stack.gateway("fra")) as client:
        keys = [f"sdk-o-{n}" for n in range(20)]
        receipts = [await client.put("customers", "DE", key, {"spend": 1}) for key in keys]
        assert [client.owner_of("DE", key).idc for key in keys] == [it.decision.owner_idc for it in receipts]
        assert [client.owns("DE", key) for key in keys] == [it.decision.owner_idc == "fra" for it in receipts]
        assert {client.owns("DE", key) for key in keys} == {True, False}
        with pytest.raises(UnknownRegion):
            client.owns("XX", "k")


async def test_across_a_border_a_purpose_decides_and_what_is_personal_stays(stack: RunningStack):
    async with regiongate.connect(stack.gateway("fra")) as home, regiongate.connect(stack.gateway("sin")) as abroad:
        await home.put("customers", "DE", "sdk-b", {"name": "Ada", "spend": 1})
        row = await abroad.get("customers", "DE", "sdk-b", purpose="support")
        assert (row.values, row.decision.rule, row.decision.withheld) == ({"spend": 1}, "eu-support", ("name",))
        assert row.decision.asking_jurisdiction == "SG"
        with pytest.raises(AccessDenied) as denied:
            await abroad.get("customers", "DE", "sdk-b")
        assert (denied.value.rule, denied.value.policy_revision) == ("europe", row.decision.policy_revision)
        with pytest.raises(AccessDenied):
            await abroad.put("customers", "CN", "sdk-b", {"name": "x"}, purpose="support")


async def test_going_straight_or_being_forwarded_is_decided_alike_law_l6(stack: RunningStack):
    async with (
        regiongate.connect(stack.gateway("sin"), purpose="support") as direct,
        regiongate.connect(stack.gateway("sin"), purpose="support", direct=False) as forwarded,
        regiongate.connect(stack.gateway("fra")) as home,
    ):
        await home.put("customers", "DE", "sdk-c", {"name": "Ada", "spend": 1})
        assert await direct.get("customers", "DE", "sdk-c") == await forwarded.get("customers", "DE", "sdk-c")
        for client in (direct, forwarded):
            with pytest.raises(AccessDenied) as denied:
                await client.delete("customers", "DE", "sdk-c")
            assert denied.value.rule == "europe"


async def test_conditions_replays_and_deletes(stack: RunningStack):
    async with regiongate.connect(stack.gateway("fra")) as client:
        first = await client.put("customers", "FR", "sdk-d", {"spend": 1}, if_version=0, request_id="sdk-d-1")
        again = await client.put("customers", "FR", "sdk-d", {"spend": 1}, if_version=0, request_id="sdk-d-1")
        assert (again.version, again.update_time) == (first.version, first.update_time)
        with pytest.raises(VersionConflict) as conflict:
            await client.put("customers", "FR", "sdk-d", {"spend": 2}, if_version=0)
        assert conflict.value.current == first.version
        await client.delete("customers", "FR", "sdk-d", if_version=first.version)
        with pytest.raises(RowNotFound):
            await client.get("customers", "FR", "sdk-d")
        with pytest.raises(UnknownRegion):
            await client.get("customers", "ZZ", "sdk-d")
        with pytest.raises(InvalidValue):
            await client.get("customers", "FR", "k" * 513)


async def test_a_batch_over_several_laws_is_answered_row_by_row(stack: RunningStack):
    async with regiongate.connect(stack.gateway("fra")) as client:
        codes = ("DE", "FR", "SG", "CN", "ZZ")
        writes = [regiongate.Put(code, f"sdk-e-{n}", {"spend": n}) for n in range(30) for code in codes]
        results = await client.batch_write("customers", writes)
        outcome = {"DE": regiongate.Receipt, "FR": regiongate.Receipt, "ZZ": UnknownRegion}
        for write, result in zip(writes, results, strict=True):
            assert isinstance(result, outcome.get(write.region_code, AccessDenied))
        rows = await client.batch_get("customers", [(write.region_code, write.key) for write in writes])
        assert [row.values["spend"] for row in rows if isinstance(row, regiongate.Row)] == [
            write.values["spend"] for write in writes if write.region_code in {"DE", "FR"}
        ]


async def test_one_trace_leads_from_the_client_to_the_statement(stack: RunningStack, tmp_path):
    tracing = Tracing("client", "", 1.0, tmp_path)
    async with regiongate.connect(stack.gateway("fra"), tracing=tracing) as client:
        await client.put("customers", "DE", "sdk-f", {"spend": 1})
    tracing.shutdown()
    (ours,) = read_spans(tmp_path)

    async def theirs() -> set[str]:
        return {span.name for span in read_spans(stack.data_dir / "traces", ours.trace_id)}

    async with asyncio.timeout(10):
        while "db.write" not in (names := await theirs()):  # noqa: ASYNC110 (another process writes the file)
            await asyncio.sleep(0.05)
    assert len(names) >= 2


async def test_the_command_finds_the_stack_by_its_folder(stack: RunningStack, capsys):
    where = ("--data-dir", str(stack.data_dir), "-o", "json")

    async def rows(*arguments: str) -> int:
        return await asyncio.to_thread(run, ["rows", *arguments, *where])

    assert await rows("put", "customers", "DE", "sdk-g", '{"name": "Ada", "spend": 1}', "--idc", "fra") == 0
    capsys.readouterr()
    assert await rows("get", "customers", "DE", "sdk-g", "--idc", "sin", "--purpose", "support") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["values"], row["decision"]["rule"]) == ({"spend": 1}, "eu-support")
    assert await rows("get", "customers", "DE", "sdk-g", "--idc", "sin") == 1
    assert "error: ACCESS_DENIED: " in capsys.readouterr().err
