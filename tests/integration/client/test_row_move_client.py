"""A row's move from an application and from a shell, once end to end, over real gateways."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

import regiongate
from regiongate.errors import AccessDenied, InvalidInput, RowExists, RowNotFound, VersionConflict
from tests.support.gateways import running_site
from tests.support.policy_fixtures import etcd
from tests.support.postgres import database_url, fresh_database, postgres_server
from tests.support.row_move_site import POLICY

__all__ = ["database_url", "etcd", "fresh_database", "postgres_server"]


async def test_an_application_and_a_shell_move_rows(etcd, postgres_server) -> None:
    async with running_site(etcd.endpoint, postgres_server, "fra", "sin", "sha", policy=POLICY) as site:
        fra, sin = (str(site[idc].gateway.address) for idc in ("fra", "sin"))
        async with regiongate.connect(fra, purpose="relocation") as client:
            await moves_rows(client)
        async with regiongate.connect(sin, purpose="relocation") as abroad:
            # Straight to the owner, and judged as asking from home.
            await abroad.put("customers", "DE", "c-2", {"name": "Ada"})
            receipt = await abroad.move("customers", "DE", "c-2", "SG")
            assert (receipt.from_decision.rule, receipt.from_decision.asking_jurisdiction) == ("relocation", "SG")
            with pytest.raises(AccessDenied) as denied:
                await abroad.move("customers", "SG", "c-2", "DE", purpose="entry")
            assert (denied.value.rule, denied.value.policy_revision) == ("europe", 1)
        await from_a_script(fra)
        await from_a_shell(fra)


async def moves_rows(client: regiongate.Client) -> None:
    written = await client.put("customers", "DE", "c-1", {"name": "Ada", "spend": 12})
    receipt = await client.move("customers", "DE", "c-1", "SG", if_version=written.version, request_id="move-1")
    row = await client.get("customers", "SG", "c-1")
    assert (row.values, row.version, row.update_time) == (
        {"name": "Ada", "spend": 12},
        receipt.version,
        receipt.update_time,
    )
    assert (receipt.from_decision.owner_idc, receipt.to_decision.owner_idc) == ("fra", "sin")
    assert await client.move("customers", "DE", "c-1", "SG", if_version=written.version, request_id="move-1") == receipt
    with pytest.raises(RowNotFound):
        await client.get("customers", "DE", "c-1")
    with pytest.raises(RowNotFound):
        await client.move("customers", "DE", "c-1", "SG")
    with pytest.raises(VersionConflict):
        await client.move("customers", "SG", "c-1", "DE", if_version=receipt.version + 1)
    await client.put("customers", "DE", "c-1", {"name": "Grace"})
    with pytest.raises(RowExists):
        await client.move("customers", "DE", "c-1", "SG")
    with pytest.raises(InvalidInput) as wrong:
        await client.move("customers", "DE", "c-1", "DE")
    assert wrong.value.field_name == "to_region_code"
    listed = [row.key async for row in client.list("customers", "SG")]
    assert listed == ["c-1"]


SCRIPT = """
import sys, regiongate.blocking
with regiongate.blocking.connect(sys.argv[1]) as client:
    client.put("customers", "DE", "c-3", {"spend": 1})
    client.move("customers", "DE", "c-3", "FR")
    print(client.get("customers", "FR", "c-3").values["spend"])
"""


async def run(*command: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def from_a_script(address: str) -> None:
    assert (await run(sys.executable, "-c", SCRIPT, address))[:2] == (0, "1\n")


async def from_a_shell(address: str) -> None:
    command = str(Path(sys.executable).with_name("regiongate"))

    async def rows(*arguments: str) -> tuple[int, str, str]:
        return await run(command, "rows", *arguments, "--target", address)

    assert (await rows("put", "customers", "DE", "c-4", '{"spend": 4}'))[0] == 0
    code, out, _ = await rows("move", "customers", "DE", "c-4", "FR", "-o", "json")
    moved = json.loads(out)
    assert code == 0
    assert (moved["from_decision"]["rule"], moved["to_decision"]["rule"]) == ("europe", "europe")
    row = json.loads((await rows("get", "customers", "FR", "c-4", "-o", "json"))[1])
    assert (row["version"], row["values"]["spend"]) == (moved["version"], 4)
    code, out, err = await rows("move", "customers", "FR", "c-4", "DE", "--if-version", str(moved["version"]))
    assert code == 0
    assert out.splitlines()[0].split() == ["VERSION", "UPDATE", "TIME"]
    assert "left FR: fra owns it" in err
    assert "came to DE: fra owns it" in err
    code, out, err = await rows("move", "customers", "DE", "c-4", "SG")
    assert (code, out) == (1, "")
    assert err.startswith("error: ACCESS_DENIED: ")
