"""etcd does not answer: own traffic goes on, no border is crossed once the lease is over, and all heals (law L6)."""

from __future__ import annotations

from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import TYPE_CHECKING

import pytest

from policy.errors import StoreUnavailable, TableTooOld, Unavailable
from tests.fault.test_stack_gateway import PATIENCE, loads
from tests.support.law_stack import LawStack, calling, revoked, until

if TYPE_CHECKING:
    from tests.support.law_stack import RawCaller


async def test_law_l6_without_etcd_a_jurisdiction_serves_its_own_and_no_border_is_crossed(laws: LawStack) -> None:
    async with (
        loads(laws, "etcd", 21) as workloads,
        calling(laws.stack.gateway("fra")) as home,
        calling(laws.stack.gateway("sin"), purpose="support") as asia,
        calling(laws.stack.gateway("ams"), purpose="billing") as europe,
    ):
        await home.put("DE", "crossing", 1)
        await asia.get("DE", "crossing")
        await europe.put("SG", "crossing", 1)
        laws.stack.signal("etcd", SIGSTOP)
        try:
            await until(lambda: _is_refused(asia), PATIENCE, "a border is crossed")
            await until(lambda: _is_refused(europe, "SG"), PATIENCE, "a border is crossed")
            for workload in workloads.values():
                await workload.progress(100)
            # Also by way of another IDC of the same jurisdiction, which owns the row.
            assert (await home.get("DE", "crossing")).values["spend"] == 1
            await _check_refused(asia, europe)
        finally:
            laws.stack.signal("etcd", SIGCONT)
        await until(lambda: _is_answered(asia, "DE"), PATIENCE, "borders stay closed")
        await until(lambda: _is_answered(europe, "SG"), PATIENCE, "borders stay closed")
        assert (await europe.get("SG", "crossing")).values["spend"] == 1, "what was refused has not been done"
    for region_code, workload in workloads.items():
        assert not workload.errors, f"{region_code}'s own traffic was disturbed: {workload.errors}"


async def test_law_l6_nothing_can_be_applied_without_etcd_and_the_killed_one_loses_nothing(laws: LawStack) -> None:
    revision = await laws.revision()
    pid = laws.stack.signal("etcd", SIGKILL)
    async with calling(laws.stack.gateway("fra")) as home:
        await home.put("DE", "without-etcd", 7)
        assert (await home.get("DE", "without-etcd")).values["spend"] == 7
    await until(lambda: _has_new_pid(laws, "etcd", pid), PATIENCE, "etcd did not come back")
    await laws.heal()
    assert await laws.revision() == revision, "the policy has survived"
    laws.stack.signal("etcd", SIGSTOP)
    try:
        async with calling(laws.stack.gateway("fra")) as admin:
            with pytest.raises(StoreUnavailable):
                await admin.apply(revoked(laws.document), timeout=20)
    finally:
        laws.stack.signal("etcd", SIGCONT)
    await laws.heal()
    assert await laws.revision() == revision


async def _check_refused(asia: RawCaller, europe: RawCaller) -> None:
    for crossing in (asia.get("DE", "crossing"), asia.get("FR", "nothing"), europe.put("SG", "crossing", 2)):
        with pytest.raises(TableTooOld):
            await crossing


async def _is_refused(caller: RawCaller, region_code: str = "DE") -> bool:
    try:
        await caller.get(region_code, "crossing", timeout=5)
    except TableTooOld:
        return True
    return False


async def _is_answered(caller: RawCaller, region_code: str) -> bool:
    try:
        await caller.get(region_code, "crossing")
    except Unavailable:  # the law, or the other gateways, are not known again yet
        return False
    return True


async def _has_new_pid(laws: LawStack, name: str, pid: int) -> bool:
    return laws.stack.pid(name) != pid
