"""Who runs jobs in an IDC, on a real etcd: joining, leaving, dying, sleeping, and etcd going away."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from policy.errors import InvalidInput
from policy.records import Keys, RunnerRecord
from regionjobs.membership import Membership
from runtime.etcd import EtcdClient
from tests.support.cluster import deadline, eventually, settings
from tests.support.policy_fixtures import cluster, etcd, own_etcd

__all__ = ["cluster", "etcd", "own_etcd"]

TTL = 2.0


@asynccontextmanager
async def runner(endpoint, keys, name="fra-runner", **words):
    """A live session."""
    async with EtcdClient(settings(endpoint)) as client:
        words = {"idc": "fra", "jobs": ["settle"], "ttl": timedelta(seconds=TTL)} | words
        membership = Membership(client, keys, name=name, **words)
        await membership.start()
        try:
            assert await membership.wait_alive(deadline())
            yield membership
        finally:
            await membership.stop()


@asynccontextmanager
async def runner_process(endpoint, keys, name="fra-other"):
    """A runner in a process of its own; its lines say what it holds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.membership_process", endpoint, keys.root.split("/")[2], name),
        stdout=asyncio.subprocess.PIPE,
        limit=2**22,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_of(process):
    """The next thing that it says: time, whether it is alive, its id."""
    moment, is_alive, session = (await asyncio.wait_for(process.stdout.readline(), 10)).decode().split()
    return float(moment), is_alive == "1", session


async def test_two_runners_of_an_idc_see_each_other_and_what_they_run(etcd, cluster):
    async with (
        runner(etcd.endpoint, cluster.keys, "a", jobs=["settle", "count"], metrics="http://127.0.0.1:9") as one,
        runner(etcd.endpoint, cluster.keys, "b") as two,
    ):
        await eventually(lambda: len(one.members) == 2)
        assert one.members == two.members
        assert one.members[one.runner] == RunnerRecord(one.runner, "fra", ("count", "settle"), "http://127.0.0.1:9")
        assert one.members[two.runner].jobs == ("settle",)
        assert one.runner.startswith("a.")


async def test_a_runner_of_another_idc_is_no_member(etcd, cluster):
    async with (
        runner(etcd.endpoint, cluster.keys, "a") as one,
        runner(etcd.endpoint, cluster.keys, "b", idc="ams") as two,
    ):
        assert set(one.members) == {one.runner}
        assert set(two.members) == {two.runner}


async def test_two_runners_of_the_same_name_live_side_by_side(etcd, cluster):
    async with runner(etcd.endpoint, cluster.keys) as one, runner(etcd.endpoint, cluster.keys) as two:
        await eventually(lambda: set(one.members) == {one.runner, two.runner})
        assert one.runner != two.runner
        assert one.is_alive
        assert two.is_alive


async def test_a_runner_that_stops_is_gone_at_once(etcd, cluster):
    async with runner(etcd.endpoint, cluster.keys, "a") as one, runner(etcd.endpoint, cluster.keys, "b") as two:
        await eventually(lambda: len(one.members) == 2)
        before = time.monotonic()
        await two.stop()
        assert not two.is_alive
        assert two.runner == ""
        await eventually(lambda: set(one.members) == {one.runner})
        assert time.monotonic() - before < TTL / 2
        assert (await cluster.client.list(cluster.keys.runners)).items[0].key.endswith(one.runner)


async def test_a_runner_that_is_killed_is_gone_within_a_second_after_its_lease(etcd, cluster):
    async with (
        runner(etcd.endpoint, cluster.keys, "a") as one,
        runner_process(etcd.endpoint, cluster.keys) as process,
    ):
        await eventually(lambda: len(one.members) == 2)
        process.kill()
        killed = time.monotonic()
        await eventually(lambda: set(one.members) == {one.runner}, TTL + 1)
        assert time.monotonic() - killed > TTL / 2, "nobody may take over while it could still be alive"


async def test_a_paused_runner_knows_on_waking_that_its_session_is_over_and_gets_another_id(etcd, cluster):
    async with (
        runner(etcd.endpoint, cluster.keys, "a") as one,
        runner_process(etcd.endpoint, cluster.keys) as process,
    ):
        while not (line := await line_of(process))[1]:
            pass
        session = line[2]
        await eventually(lambda: session in one.members)
        process.send_signal(signal.SIGSTOP)
        await eventually(lambda: session not in one.members)
        over = time.monotonic()
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(15):
            while not (line := await line_of(process))[1] or line[2] == session:
                assert line[0] < over or not line[1], "it took itself for alive after its session was over"
        assert line[0] > over
        await eventually(lambda: set(one.members) == {one.runner, line[2]})


async def test_a_runner_is_not_alive_while_etcd_is_away_for_longer_than_its_lease_and_registers_anew(own_etcd):
    async with runner(own_etcd.endpoint, Keys("away")) as one:
        session = one.runner
        await own_etcd.kill()
        stopped = time.monotonic()
        await eventually(lambda: not one.is_alive, TTL)
        assert one.runner == ""
        await eventually(lambda: time.monotonic() > stopped + TTL)
        await own_etcd.start()
        assert await one.wait_alive(deadline(15))
        assert one.runner not in {session, ""}
        await eventually(lambda: set(one.members) == {one.runner})


async def test_a_short_outage_of_etcd_ends_no_session(own_etcd):
    async with runner(own_etcd.endpoint, Keys("blink"), ttl=timedelta(seconds=10)) as one:
        session = one.runner
        await own_etcd.kill()
        await own_etcd.start()
        async with runner(own_etcd.endpoint, Keys("blink"), "other") as two:
            await eventually(lambda: len(one.members) == 2 and one.members == two.members)
        assert one.runner == session


async def test_a_runner_whose_record_somebody_deleted_gets_another_session(etcd, cluster):
    async with runner(etcd.endpoint, cluster.keys) as one:
        session = one.runner
        await cluster.client.delete(cluster.keys.runner("fra", session))
        await eventually(lambda: one.runner not in {session, ""})
        assert set(one.members) == {one.runner}


async def test_each_change_of_membership_is_announced(etcd, cluster):
    async with runner(etcd.endpoint, cluster.keys, "a") as one:
        changed = one.changed
        async with runner(etcd.endpoint, cluster.keys, "b"):
            await asyncio.wait_for(changed.wait(), 5)
            assert len(one.members) == 2
            changed = one.changed
        await asyncio.wait_for(changed.wait(), 5)
        assert len(one.members) == 1


async def test_a_record_that_is_none_hides_no_runner(etcd, cluster):
    await cluster.client.put(cluster.keys.runner("fra", "junk"), b"[")
    async with runner(etcd.endpoint, cluster.keys) as one:
        assert set(one.members) == {one.runner}


@pytest.mark.parametrize("name", ["", "a/b"])
async def test_a_name_that_cannot_be_part_of_a_key_is_refused(cluster, name):
    with pytest.raises(InvalidInput) as caught:
        Membership(cluster.client, cluster.keys, idc="fra", name=name, jobs=[])
    assert caught.value.field_name == "name"
