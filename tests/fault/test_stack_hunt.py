"""A longer hunt: everything is killed, paused and revoked at random while rows are read and written (`make soak`).

The seed is printed with a failure; `HUNT_SEED` and `HUNT_SECONDS` choose another hunt.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest

from policy.errors import RegiongateError
from tests.fault.test_stack_gateway import loads
from tests.support.law_stack import IDCS, LawStack, calling, revoked

SEED = int(os.environ.get("HUNT_SEED", "0")) or random.randrange(1, 10**6)
SECONDS = float(os.environ.get("HUNT_SECONDS", "120"))


@dataclass
class Crossings:
    """Reads across a border, each compared with the law that was effective before it was asked (law L6)."""

    laws: LawStack
    effective: int
    answered: int = 0
    refused: int = 0
    stale: list[str] = field(default_factory=list)

    async def run(self, address: str, origin: str, stop: asyncio.Event) -> None:
        async with calling(address, purpose="support", origin=origin) as asia:
            while not stop.is_set():
                effective = self.effective
                try:
                    answer = await asia.get("DE", "crossing", timeout=8)
                except RegiongateError:
                    self.refused += 1
                    await asyncio.sleep(0.01)
                    continue
                self.answered += 1
                if answer.revision < effective:
                    self.stale.append(f"{answer.rule} of {answer.revision} after {effective} was effective")


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 300)
async def test_the_laws_survive_a_random_hunt(laws: LawStack) -> None:
    dice = random.Random(SEED)
    print(f"HUNT_SEED={SEED}")
    stop = asyncio.Event()
    async with calling(laws.stack.gateway("fra")) as home:
        await home.put("DE", "crossing", 1)
    crossings = Crossings(laws, await laws.revision())
    doors = [(laws.stack.gateway("sin"), ""), (laws.stack.gateway("fra"), "sin"), (laws.stack.gateway("ams"), "sin")]
    readers = [asyncio.create_task(crossings.run(address, origin, stop)) for address, origin in doors]
    history: list[str] = []
    async with loads(laws, f"hunt-{SEED}", SEED) as workloads:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            history.append(await _strike(laws, crossings, dice))
            await asyncio.sleep(dice.uniform(0.1, 2))
        await laws.heal()
        for workload in workloads.values():
            await workload.progress(50)
        stop.set()
        await asyncio.gather(*readers)
    print(f"{len(history)} strikes, crossings: {crossings.answered} answered, {crossings.refused} refused")
    assert not crossings.stale, (SEED, crossings.stale[:5], history)
    assert crossings.answered > 100


async def _strike(laws: LawStack, crossings: Crossings, dice: random.Random) -> str:
    kind = dice.choice(["kill", "pause", "pause", "apply", "apply", "both"])
    gateways, databases = [f"gateway-{idc}" for idc in IDCS], [f"postgres-{idc}" for idc in IDCS]
    if kind == "kill":
        name = dice.choice([*gateways, *databases, "controller"])
        _signal(laws, name, SIGKILL)
        return f"kill {name}"
    names = [] if kind == "apply" else [dice.choice([*gateways, "etcd"] if kind == "pause" else gateways)]
    for name in names:
        _signal(laws, name, SIGSTOP)
    try:
        if kind != "pause":
            document = dice.choice([laws.document, revoked(laws.document)])
            try:
                door = dice.choice([idc for idc in IDCS if f"gateway-{idc}" not in names])
                crossings.effective = max(crossings.effective, (await laws.apply(document, door)).revision)
            except Exception as error:  # noqa: BLE001 (it may meet anything that is down: then nothing is claimed)
                return f"{kind} {names}: {type(error).__name__}"
        else:
            await asyncio.sleep(dice.uniform(0.5, 7))
    finally:
        for name in names:
            _signal(laws, name, SIGCONT)
    return f"{kind} {names}"


def _signal(laws: LawStack, name: str, number: int) -> None:
    try:
        os.kill(laws.stack.pid(name), number)
    except ProcessLookupError:
        return
