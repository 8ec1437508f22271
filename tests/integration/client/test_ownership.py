"""Programs that work on what their IDC owns: over real grpc, and the published example on a real stack."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

import regiongate
from policy.sharding import shard_of
from regiongate.errors import InvalidInput, PeerUnreachable, UnknownRegion
from tests.integration.client.cluster import SHARDS, running
from tests.support.ports import free_port
from tests.support.stack import ROOT, running_stack

EXAMPLE = ROOT / "docs" / "examples" / "unmanaged.py"
POLICY = """\
version: 1
idcs:
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
residency:
  - {name: europe, regions: [DE], jurisdictions: [EU], idcs: {fra: 50, ams: 50}, shards: 4}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
"""
KEYS = [f"c-{n}" for n in range(16)]


async def next_of(sets):
    return await asyncio.wait_for(anext(sets), 5)


async def test_a_program_learns_its_shards_and_each_change_of_them():
    async with running() as sites, regiongate.Ownership(sites["fra"].address, regions=["DE"]) as ownership:
        world = sites["fra"].world
        sets = aiter(ownership)
        first = await next_of(sets)
        assert first is ownership.shards
        assert (ownership.idc, list(first)) == ("fra", [("DE", 0), ("DE", 2)])
        world.move("DE", 0, "ams")
        assert list(await next_of(sets)) == [("DE", 2)]
        world.move("DE", 1, "fra")
        assert list(await next_of(sets)) == [("DE", 1), ("DE", 2)]
        assert list(first) == [("DE", 0), ("DE", 2)], "a set is fixed"


async def test_whether_a_row_is_owned_is_answered_at_once_as_the_client_answers_it():
    async with (
        running() as sites,
        regiongate.connect(sites["fra"].address) as client,
        regiongate.Ownership(sites["fra"].address) as ownership,
    ):
        for key in KEYS:
            assert ownership.owns("DE", key) == client.owns("DE", key)
            assert not ownership.owns("SG", key)
        with pytest.raises(UnknownRegion):
            ownership.owns("XX", "k")


async def test_a_slow_program_gets_the_newest_set_only():
    async with running() as sites, regiongate.Ownership(sites["fra"].address, regions=["DE"]) as ownership:
        world = sites["fra"].world
        sets, others = aiter(ownership), aiter(ownership)
        await next_of(sets)
        await next_of(others)
        world.move("DE", 0, "ams")
        await next_of(others)
        world.move("DE", 2, "ams")
        await next_of(others)
        assert len(await next_of(sets)) == 0


async def test_a_program_goes_on_when_its_gateway_goes_and_another_one_is_there():
    async with running("fra2") as sites:
        target = f"{sites['fra'].address},{sites['fra2'].address}"
        async with regiongate.Ownership(target, regions=["DE"]) as ownership:
            sets = aiter(ownership)
            await next_of(sets)
            await sites["fra"].stop()
            sites["fra"].world.move("DE", 0, "ams")
            assert list(await next_of(sets)) == [("DE", 2)]


async def test_the_sets_end_with_the_ownership():
    async with running() as sites, regiongate.Ownership(sites["fra"].address) as ownership:
        sets = aiter(ownership)
        await next_of(sets)
        waiting = asyncio.create_task(anext(sets, None))
    assert await asyncio.wait_for(waiting, 5) is None
    assert [shards async for shards in ownership] == []


async def test_a_program_without_a_gateway_or_with_a_region_that_nobody_knows_does_not_start():
    settings = regiongate.ClientSettings(connect_timeout=regiongate.ClientSettings().connect_timeout / 10)
    with pytest.raises(PeerUnreachable):
        await regiongate.Ownership(f"127.0.0.1:{free_port()}", settings=settings).__aenter__()
    with pytest.raises(InvalidInput):
        regiongate.Ownership("nowhere")
    async with running() as sites:
        with pytest.raises(UnknownRegion) as caught:
            await regiongate.Ownership(sites["fra"].address, regions=["DE", "XX"]).__aenter__()
    assert caught.value.field_name == "regions"


# ---- the example, on a real stack -----------------------------------------------------------------------------------


@dataclass
class Program:
    """The example as a process, and what it has printed when."""

    lines: list[tuple[float, str]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            self.lines.append((time.monotonic(), line.decode().strip()))
            self.news.set()

    def work(self, after: str = "") -> set[str]:
        """Keys that it has worked on; with `after`, since it printed that."""
        lines = [line for _, line in self.lines]
        if after:
            lines = lines[lines.index(after) :] if after in lines else []
        return {line.rpartition(" ")[2] for line in lines if " works on " in line}

    def times(self, keys: set[str]) -> list[float]:
        """When it has worked on these."""
        return [moment for moment, line in self.lines if " works on " in line and line.rpartition(" ")[2] in keys]

    async def until(self, condition) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def example(target: str):
    process = await asyncio.create_subprocess_exec(sys.executable, EXAMPLE, target, stdout=asyncio.subprocess.PIPE)
    program = Program()
    reading = asyncio.create_task(program.read(process.stdout))
    try:
        yield program
        assert process.returncode is None, "it goes on until it is stopped"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def test_the_example_works_on_what_its_idc_owns_and_hands_over_what_moves(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    with running_stack(policy) as stack:
        async with regiongate.connect(stack.gateway("fra")) as client:
            for key in KEYS:
                await client.put("customers", "DE", key, {"name": "Ada"})
            mine = {key for key in KEYS if client.owns("DE", key)}
            async with example(stack.gateway("fra")) as fra, example(stack.gateway("ams")) as ams:
                await fra.until(lambda: fra.work() == mine)
                await ams.until(lambda: ams.work() == set(KEYS) - mine)
                shard = client.owner_of("DE", min(mine)).shard
                moved = {key for key in mine if shard_of(key, SHARDS) == shard}
                command = [sys.executable, "-m", "regiongate.cli.main", "shards", "move", f"DE/{shard}", "--to", "ams"]
                move = await asyncio.create_subprocess_exec(
                    *command, "--wait", f"--data-dir={stack.data_dir}", cwd=ROOT, stdout=asyncio.subprocess.DEVNULL
                )
                assert await asyncio.wait_for(move.wait(), 30) == 0
                await ams.until(lambda: moved <= ams.work(after="3 shards are of ams"))
                await fra.until(lambda: fra.work(after="1 shards are of fra") == mine - moved)
    assert not moved & fra.work(after="1 shards are of fra")
    # Each as it was read here, which is a moment after it was printed.
    assert max(fra.times(moved)) < min(ams.times(moved)) + 0.5, "one IDC at a time"
