"""Gateways die and sleep under load: laws L3 and L4 hold, and the database has each acknowledged write once."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import TYPE_CHECKING

import regiongate
from tests.support.law_stack import IDCS, LawStack, until
from tests.support.workload import Workload, check_stored, under_load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE = 45
"""Seconds for a process to come back on a busy machine."""

HOMES = {"DE": ("fra", "ams"), "SG": ("sin",), "CN": ("sha",)}


@asynccontextmanager
async def loads(laws: LawStack, name: str, seed: int) -> AsyncIterator[dict[str, Workload]]:
    """A workload for each RegionCode, through the gateways of its jurisdiction; judged at the end."""
    async with AsyncExitStack() as stack:
        workloads: dict[str, Workload] = {}
        for region_code, homes in HOMES.items():
            addresses = [laws.stack.gateway(idc) for idc in homes]
            clients = [await stack.enter_async_context(regiongate.connect(address)) for address in addresses]
            keys = [(region_code, f"{name}-{number}") for number in range(6)]
            workloads[region_code] = Workload(clients, keys, workers=4, timeout=15, seed=seed)
        async with AsyncExitStack() as running:
            for workload in workloads.values():
                await running.enter_async_context(under_load(workload))
                await workload.progress(30)
            yield workloads
    rows = await laws.check_places()
    for workload in workloads.values():
        assert not workload.violations()
        check_stored(workload, rows)


async def test_laws_l3_and_l4_survive_a_gateway_that_is_killed_under_load(laws: LawStack) -> None:
    async with loads(laws, "killed", 11) as workloads:
        pid = laws.stack.signal("gateway-fra", SIGKILL)
        for elsewhere in ("SG", "CN"):
            await workloads[elsewhere].progress(100)
        await until(lambda: _has_new_pid(laws, "gateway-fra", pid), PATIENCE, "the gateway did not come back")
        await until(lambda: laws.is_ready("fra"), PATIENCE, "the gateway is not ready again")
        await workloads["DE"].progress(200)
    assert not workloads["SG"].errors
    assert not workloads["CN"].errors


async def test_laws_l3_and_l4_survive_a_gateway_that_sleeps_longer_than_its_lease(laws: LawStack) -> None:
    async with loads(laws, "paused", 12) as workloads:
        laws.stack.signal("gateway-fra", SIGSTOP)
        try:
            await until(lambda: _is_gone(laws, "fra"), PATIENCE, "the lease did not run out")
            await workloads["SG"].progress(50)
        finally:
            laws.stack.signal("gateway-fra", SIGCONT)
        await until(lambda: laws.is_ready("fra"), PATIENCE, "the gateway is not ready again")
        await workloads["DE"].progress(200)
    assert not workloads["SG"].errors
    assert not workloads["CN"].errors


async def test_laws_l3_and_l4_survive_all_gateways_being_killed_at_once(laws: LawStack) -> None:
    async with loads(laws, "massacre", 13) as workloads:
        pids = {idc: laws.stack.signal(f"gateway-{idc}", SIGKILL) for idc in IDCS}
        for idc, pid in pids.items():
            await until(
                lambda idc=idc, pid=pid: _has_new_pid(laws, f"gateway-{idc}", pid), PATIENCE, f"{idc} is not back"
            )
        for idc in IDCS:
            await until(lambda idc=idc: laws.is_ready(idc), PATIENCE, f"{idc} is not ready again")
        for workload in workloads.values():
            await workload.progress(100)


async def _has_new_pid(laws: LawStack, name: str, pid: int) -> bool:
    return laws.stack.pid(name) != pid


async def _is_gone(laws: LawStack, idc: str) -> bool:
    return not await laws.gateway_records(idc)
