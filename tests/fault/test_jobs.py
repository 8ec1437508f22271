"""Laws L1 and L5 of jobs: each change is handled once in its own IDC, whatever happens to runners and what they need.

`fed` judges at the end: what the ledgers in the batches' transactions hold, and what the file outside of them does.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from rowstore.jobs import registry
from tests.support.job_attacks import POISON, fed, struck
from tests.support.job_runners import LEASE_SECONDS
from tests.support.law_stack import until
from tests.support.move_stack import IDCS, PATIENCE, SHARDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.job_attacks import Fleet
    from tests.support.job_runners import JobRunner

MOVES = 24
AT_ONCE = 8
POLL_SECONDS = 1.0
"""How often runners look for work of themselves."""
TICKS = 4

TICKING = '''
import regiongate


@regiongate.job(dataset="customers", trigger=regiongate.Every(seconds=1), with_deleted=True)
async def ticking(batch):
    """Nothing is to be done: it is about when."""
'''


async def test_laws_l1_and_l5_hold_while_runners_die_and_sleep_and_shards_move(fleet: Fleet) -> None:
    async with fed(fleet, "random") as feed, struck(fleet) as strikes, fleet.moves.controller():
        await feed.progress(50)
        for _ in range(MOVES // AT_ONCE):
            await fleet.shuffle(AT_ONCE)
        await feed.progress(50)
    assert strikes


async def test_laws_l1_and_l5_survive_the_death_of_a_database_while_shards_leave_it(fleet: Fleet) -> None:
    home, _ = await fleet.moves.ends()
    name = f"postgres-{home}"
    async with fed(fleet, "database") as feed, fleet.moves.controller():
        await feed.progress(50)
        moving = asyncio.create_task(fleet.shuffle(AT_ONCE))
        pid = fleet.moves.kill(name)
        await fleet.moves.wait_back(name, pid)
        await moving
        await feed.progress(50)


async def test_runners_stop_by_themselves_while_etcd_sleeps_and_go_on_when_it_wakes(fleet: Fleet) -> None:
    home, _ = await fleet.moves.ends()
    shard, rows = 3, 20
    async with fed(fleet, "etcd") as feed:
        await feed.progress(50)
        async with fleet.moves.asleep("etcd"):
            await until(partial(_all_without_session, fleet), PATIENCE, "somebody goes on without a session")
            before = await _offsets(fleet, home)
            # Work that nobody may do now: past the gateways, which have stopped as well.
            await fleet.moves.fill(home, shard, rows)
            await fleet.execute(home, "SELECT pg_notify('regiongate_jobs', '')")
            # To see that nothing happens there is nothing to wait for but the time in which it would have.
            await asyncio.sleep(2 * POLL_SECONDS)
            assert await _offsets(fleet, home) == before
        await feed.progress(50)
        await fleet.caught_up()
        assert len([it for it in await fleet.entries() if it.key.startswith("bulk-")]) == rows
    await fleet.moves.clear(shard)


async def test_runners_of_one_name_take_over_in_time_from_one_that_dies_and_at_once_from_one_that_leaves(
    fleet: Fleet,
) -> None:
    home, _ = await fleet.moves.ends()
    async with fed(fleet, "names", pause=0.01) as feed:
        for signal, seconds in (("SIGKILL", LEASE_SECONDS + 1), ("SIGTERM", LEASE_SECONDS)):
            await until(partial(_share, fleet, home, 2), PATIENCE, "the two do not share the work")
            assert len(await fleet.sessions(home)) == 2
            leaver = fleet.of(home)[0]
            (session,) = [it for it in (await fleet.sessions(home)).values() if it.metrics == leaver.metrics]
            began = asyncio.get_running_loop().time()
            ending = asyncio.create_task(leaver.kill() if signal == "SIGKILL" else leaver.stop())
            await until(partial(_has_nothing, fleet, home, session.runner), PATIENCE, "nobody takes over")
            took = asyncio.get_running_loop().time() - began
            await ending
            assert took < seconds, f"taken over after {took:.2f} s, {signal}"
            print(f"{signal}: taken over after {took:.2f} s")
            await fleet.muster()
        await feed.progress(50)


async def test_clocks_an_hour_apart_change_nothing(fleet: Fleet) -> None:
    """Each second of the database's clock fires once in the IDC, and the ledger has each change once."""
    home, _ = await fleet.moves.ends()
    module = fleet.write_module("ticking", TICKING)
    async with fed(fleet, "clocks") as feed:
        crew = fleet.of(home)
        first, second = await asyncio.gather(*(fleet.enlist(home, module, clock_ahead=it) for it in (-1800, 1800)))
        # From here on only these two are left to handle what the IDC owns.
        await asyncio.gather(*(it.stop() for it in crew))
        assert abs(_clock(first) - _clock(second)) > timedelta(minutes=59)
        (begin,) = await fleet.fetch(home, "SELECT clock_timestamp()")
        await until(partial(_has_ticked, fleet, home), PATIENCE, "it does not fire")
        (end,) = await fleet.fetch(home, "SELECT clock_timestamp()")
        await feed.progress(50)
        await asyncio.gather(first.stop(), second.stop())
        await fleet.muster()
    sql = "SELECT scheduled_time, misfires FROM job_firings WHERE job = 'ticking' ORDER BY scheduled_time"
    firings = [(it[0], it[1]) for it in await fleet.fetch(home, sql)]
    seconds = [time.timestamp() for time, _ in firings]
    assert all(second == int(second) for second in seconds)
    # A busy machine may pass over a second, and says so: each is accounted for once.
    for before, (time, misfires) in zip(seconds, firings[1:], strict=False):
        assert time.timestamp() - before == misfires + 1
    assert begin[0].timestamp() - 10 < seconds[0]
    assert len([it for it in seconds if it <= end[0].timestamp()]) >= TICKS
    (now,) = await fleet.fetch(home, "SELECT clock_timestamp()")
    assert seconds[-1] <= now[0].timestamp()


async def test_law_l1_leaves_nothing_of_a_job_where_a_new_law_forbids_it(fleet: Fleet) -> None:
    """Neither rows nor effects, nor offsets, nor what was set aside: that can be replayed at the new owner."""
    moves = fleet.moves
    home, other = await moves.ends()
    keys = [f"poison-{number}" for number in range(4)]
    async with fed(fleet, "forbidden") as feed, moves.controller():
        outside = feed.clients[-1]  # the only one that the law lets write throughout, from SG
        for key in keys:
            await outside.put("customers", "DE", key, {"spend": POISON})
        await until(partial(_are_aside, fleet, home, keys), PATIENCE, "they are not set aside")
        await moves.order(other, jurisdictions=IDCS[other])
        await moves.rest()
        await feed.progress(50)
        for idc in set(IDCS) - {other}:
            assert "DE" not in {code for code, _ in await moves.counts(idc)}, f"something is left in {idc}"
        assert await _are_aside(fleet, other, keys)
        # One changes before it is tried again: that is handled as any change, and not as what was set aside, too.
        await outside.put("customers", "DE", keys[0], {"spend": 1})
        fleet.cure.touch()
        async with moves.database(other) as connection:
            assert await registry.replay(connection.fetch, "ledger", "DE") >= len(keys)
            await registry.ring(connection.fetch)
        await until(partial(_is_none_aside, fleet), PATIENCE, "they are not tried again")
    fleet.cure.unlink()
    async with moves.controller():
        await moves.order(other)
        await moves.rest()


# ---- what is looked at ----------------------------------------------------------------------------------------------


async def _all_without_session(fleet: Fleet) -> bool:
    health = await asyncio.gather(*(it.health() for it in fleet.runners))
    return all(it.checks.get("session") == "none" for it in health)


async def _offsets(fleet: Fleet, idc: str) -> list[tuple[str, int, int, int]]:
    """RegionCode, shard, offset and token of each shard."""
    sql = "SELECT region_code, shard, seq, token FROM job_offsets WHERE job = 'ledger' ORDER BY 1, 2"
    return [(it[0], it[1], it[2], it[3]) for it in await fleet.fetch(idc, sql)]


async def _holders(fleet: Fleet, idc: str) -> list[str]:
    """Sessions of those who took each shard last."""
    sql = "SELECT runner FROM job_offsets WHERE job = 'ledger' AND region_code = 'DE' AND runner <> ''"
    return [it[0] for it in await fleet.fetch(idc, sql)]


async def _share(fleet: Fleet, idc: str, runners: int) -> bool:
    """Whether all shards are held, by so many live runners."""
    holders, sessions = await _holders(fleet, idc), await fleet.sessions(idc)
    return len(holders) == SHARDS and set(holders) == set(sessions) and len(sessions) == runners


async def _has_nothing(fleet: Fleet, idc: str, session: str) -> bool:
    return session not in await _holders(fleet, idc)


async def _has_ticked(fleet: Fleet, idc: str) -> bool:
    sql = "SELECT count(*) FROM job_firings WHERE job = 'ticking' AND end_time IS NOT NULL"
    return (await fleet.fetch(idc, sql))[0][0] >= TICKS


async def _are_aside(fleet: Fleet, idc: str, keys: Sequence[str]) -> bool:
    """Whether these rows are set aside there, and nowhere else."""
    return sorted((it.home, it.key) for it in await fleet.set_aside() if it.key in keys) == [(idc, it) for it in keys]


async def _is_none_aside(fleet: Fleet) -> bool:
    return not await fleet.set_aside()


def _clock(runner: JobRunner) -> datetime:
    """What the runner takes for the time of its first line in the log."""
    return datetime.fromisoformat(json.loads(runner.log.splitlines()[0])["timestamp"])
