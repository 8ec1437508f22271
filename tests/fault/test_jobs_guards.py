"""What the guards of a job's commit are there for: the same scenario with them, and without some of them.

Runners are stopped in the middle of a batch, with effects in an open transaction. Then one shard is taken over by
another runner of the IDC, and one moves to another IDC. Then they wake up and want to commit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import regiongate
from policy.sharding import shard_of
from tests.support.law_stack import until
from tests.support.move_stack import PATIENCE, SHARDS, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.job_attacks import Fleet
    from tests.support.job_runners import JobRunner
    from tests.support.move_stack import MoveStack

TAKEN, MOVED = 5, 9
"""Shards."""
KEPT = ("job_offsets", "effects_ledger")
FEW: dict[str, Any] = {"database_connections": 2, "batch_connections": 6}
"""The database takes 100, and there are many runners."""
HELD = """
import asyncio
import os
from datetime import timedelta
from pathlib import Path

import regiongate
from sqlalchemy import text

INSERT = text("INSERT INTO effects_ledger VALUES (:region_code, :shard, :seq, :key, :spend, :idc, :job)")
HOLD = os.environ.get("TEST_HOLD", "")


def make(name):
    @regiongate.job(
        name=name, dataset="customers", regions=["DE"], kind="long-running", concurrency=4,
        timeout=timedelta(seconds=120), retry=regiongate.Retry(longest_pause=timedelta(seconds=1)),
    )
    async def held(batch):
        await batch.connection.execute(INSERT, [
            {"region_code": row.region_code, "shard": row.shard, "seq": row.version, "key": row.key,
             "spend": row["spend"], "idc": batch.idc, "job": batch.job}
            for row in batch.rows
        ])
        if HOLD and any(row.key.startswith("held-") for row in batch.rows):
            Path(HOLD, f"{batch.job}-{batch.shard}").touch()
            while not Path(HOLD, "go").exists():
                await asyncio.sleep(0.01)


for name in os.environ["TEST_JOBS"].split(","):
    make(name)
"""
BARE = ("sessions", "token", "position")
SCENES: dict[tuple[str, ...], tuple[int, int]] = {
    ("nothing",): (1, 1),
    ("sessions",): (1, 1),
    BARE: (2, 1),
    (*BARE, "job-fence"): (2, 2),
}
"""Guards that a runner goes without -> how often the row of the shard that was taken, and of the one that has moved,
is in the ledgers at the end."""
MORE_SCENES: dict[tuple[str, ...], tuple[int, int]] = {
    ("sessions", "token"): (1, 1),
    ("sessions", "position"): (1, 1),
    ("sessions", "token", "job-fence"): (1, 2),
    ("sessions", "position", "job-fence"): (1, 1),
    ("token", "position", "job-fence"): (1, 1),
}


@pytest.mark.parametrize("scenes", [SCENES, pytest.param(MORE_SCENES, marks=pytest.mark.soak)], ids=["few", "more"])
async def test_law_l5_rests_on_token_position_and_fence(
    moves: MoveStack, shared_fleet: Fleet, scenes: dict[tuple[str, ...], tuple[int, int]]
) -> None:
    """A runner that was paused commits nothing once its shard is another's: not even one that thinks it may."""
    fleet = shared_fleet
    home, target = await moves.ends()
    await _put(moves, home)
    jobs = {f"held-{number}": without for number, without in enumerate(scenes)}
    paused = await _hold(fleet, home, jobs)
    for runner in paused.values():
        runner.pause()
    module, everything = fleet.write_module("held", HELD), {"TEST_JOBS": ",".join(jobs)}
    # The others leave the connections of the paused alone: what they have open stays so.
    await fleet.start(target, module, name="owner", without=("ending",), environment=everything, **FEW)
    async with moves.controller(f"before PurgeShard DE/{MOVED}") as controller:
        await moves.move_shard(MOVED, target)
        await controller.held()
        await until(partial(_are_handled, fleet, jobs, MOVED), PATIENCE, "the new owner does not go on")
        for table in KEPT:
            await fleet.execute(home, f"CREATE TABLE kept_{table} AS SELECT * FROM {table} WHERE shard = {MOVED}")
        await fleet.start(home, module, name="taker", without=("ending",), environment=everything, **FEW)
        await until(partial(_are_handled, fleet, jobs, TAKEN), PATIENCE, "nobody takes over")
        (fleet.folder / "go").touch()
        for runner in paused.values():
            runner.wake()
        found = {}
        for job, runner in paused.items():
            await until(partial(_has_come_to_an_end, fleet, job, runner), PATIENCE, f"{jobs[job]}: it does not end")
            handled = await _handled(fleet)
            found[jobs[job]] = (handled[job, TAKEN], handled[job, MOVED])
        await asyncio.gather(*(it.kill() for it in fleet.runners))
        fleet.runners.clear()
        assert found == scenes
        # What should never have come there would hold up the move for ever, as it must.
        await _clear(fleet, home)
        controller.go()
        await moves.rest()


async def test_what_a_paused_runner_has_locked_is_free_for_a_runner_that_comes_when_it_is_gone(
    moves: MoveStack, shared_fleet: Fleet
) -> None:
    """Its transaction is open, and has written what nobody may write twice: whoever does the work now waits for it."""
    fleet, job = shared_fleet, "held-lock"
    home, _ = await moves.ends()
    await _put(moves, home)
    await fleet.execute(home, f"CREATE UNIQUE INDEX once ON effects_ledger (shard, seq) WHERE job = '{job}'")
    paused = await _hold(fleet, home, {job: ("nothing",)})
    paused[job].pause()
    await until(partial(_is_nobody_there, fleet, home), PATIENCE, "its session does not end")
    module = fleet.write_module("held", HELD)
    comer = await fleet.start(home, module, name="comer", environment={"TEST_JOBS": job}, **FEW)
    # Of itself the transaction would stay open for as long as a batch may take, which is longer.
    await until(partial(_are_handled, fleet, [job], TAKEN), PATIENCE, "it waits for one that is paused")
    await comer.kill()
    await paused[job].kill()
    fleet.runners.clear()
    await fleet.execute(home, "DROP INDEX once")


async def _put(moves: MoveStack, door: str) -> None:
    async with regiongate.connect(moves.stack.gateway(door)) as client:
        for key in keys_of("held", 1):
            if shard_of(key, SHARDS) in (TAKEN, MOVED):
                await client.put("customers", "DE", key, {"spend": 1})


async def _hold(fleet: Fleet, idc: str, jobs: dict[str, tuple[str, ...]]) -> dict[str, JobRunner]:
    """A runner for each job, stopped in the middle of the two batches."""
    (fleet.folder / "go").unlink(missing_ok=True)
    marks = [fleet.folder / f"{job}-{shard}" for job in jobs for shard in (TAKEN, MOVED)]
    for mark in marks:
        mark.unlink(missing_ok=True)
    module = fleet.write_module("held", HELD)
    runners = await asyncio.gather(
        *(
            fleet.start(
                idc,
                module,
                name=job,
                without=without,
                environment={"TEST_JOBS": job, "TEST_HOLD": str(fleet.folder)},
                **FEW,
            )
            for job, without in jobs.items()
        )
    )

    async def are_there() -> bool:
        return all(mark.exists() for mark in marks)

    await until(are_there, PATIENCE, "they do not come to the batches")
    return dict(zip(jobs, runners, strict=True))


async def _handled(fleet: Fleet) -> Counter[tuple[str, int]]:
    """How often each job has handled the row of each shard, in all ledgers."""
    return Counter((it.job, it.shard) for it in await fleet.entries() if it.key.startswith("held-"))


async def _is_nobody_there(fleet: Fleet, idc: str) -> bool:
    return not await fleet.sessions(idc)


async def _are_handled(fleet: Fleet, jobs: Iterable[str], shard: int) -> bool:
    handled = await _handled(fleet)
    return all(handled[job, shard] for job in jobs)


async def _has_come_to_an_end(fleet: Fleet, job: str, runner: JobRunner) -> bool:
    """Whether both of its batches have: committed, refused, or cut short by the end of the session."""
    handled = await _handled(fleet)
    committed = sum(handled[job, shard] > 1 for shard in (TAKEN, MOVED))
    refused = runner.log.count('"outcome": "lost"')
    return committed + refused >= 2 or "the session is over" in runner.log


async def _clear(fleet: Fleet, idc: str) -> None:
    """What is left in the source of the move is again what it was when it was copied."""
    for table in KEPT:
        await fleet.execute(idc, f"DELETE FROM {table} WHERE shard = {MOVED}")
        await fleet.execute(idc, f"INSERT INTO {table} SELECT * FROM kept_{table}")
        await fleet.execute(idc, f"DROP TABLE kept_{table}")
