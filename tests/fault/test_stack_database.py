"""A database dies or sleeps under load: its own IDC waits, no other one notices (laws L3 and L4)."""

from __future__ import annotations

import contextlib
import os
from signal import SIGCONT, SIGKILL, SIGSTOP

import psutil
import pytest

from policy.errors import DatabaseUnavailable, DeadlineExceeded
from policy.sharding import shard_of
from tests.fault.test_stack_gateway import PATIENCE, loads
from tests.support.law_stack import LawStack, calling, until


async def test_laws_l3_and_l4_survive_a_database_that_is_killed_under_load(laws: LawStack) -> None:
    async with loads(laws, "database", 31) as workloads:
        pid = laws.stack.signal("postgres-fra", SIGKILL)
        for elsewhere in ("SG", "CN"):
            await workloads[elsewhere].progress(100)
        await until(lambda: _has_new_pid(laws, "postgres-fra", pid), PATIENCE, "the database did not come back")
        await until(lambda: laws.is_ready("fra"), PATIENCE, "the gateway does not find its database")
        await workloads["DE"].progress(200)
    assert not workloads["SG"].errors
    assert not workloads["CN"].errors


async def test_a_frozen_database_holds_its_own_calls_up_and_no_other_ones(laws: LawStack) -> None:
    keys = await _keys_by_owner(laws)
    async with calling(laws.stack.gateway("fra")) as fra, calling(laws.stack.gateway("ams")) as ams:
        for key in keys.values():
            await fra.put("DE", key, 1)
        pids = _backends(laws, "postgres-fra")
        for pid in pids:
            _signal(pid, SIGSTOP)
        try:
            with pytest.raises((DatabaseUnavailable, DeadlineExceeded)):
                await ams.get("DE", keys["fra"], timeout=1)
            assert (await ams.get("DE", keys["ams"], timeout=PATIENCE)).values["spend"] == 1
            assert (await fra.get("DE", keys["ams"], timeout=PATIENCE)).values["spend"] == 1
        finally:
            for pid in pids:
                _signal(pid, SIGCONT)
        await until(lambda: laws.is_ready("fra"), PATIENCE, "the gateway does not find its database")
        assert (await ams.get("DE", keys["fra"], timeout=PATIENCE)).values["spend"] == 1


async def _keys_by_owner(laws: LawStack) -> dict[str, str]:
    """A key of DE for each of its owners."""
    owners = await laws.shard_records()
    return {owners["DE", shard_of(key, 4)].owner: key for key in map("frozen-{}".format, range(40))}


def _backends(laws: LawStack, name: str) -> list[int]:
    """The server and everything that it has started."""
    server = psutil.Process(laws.stack.pid(name))
    return [server.pid, *(child.pid for child in server.children(recursive=True))]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _has_new_pid(laws: LawStack, name: str, pid: int) -> bool:
    return laws.stack.pid(name) != pid
