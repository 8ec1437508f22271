"""The controller dies in the middle of a first assignment: another one goes on from what etcd says (laws L1 and L2)."""

from __future__ import annotations

from signal import SIGKILL

from policy.model import Phase
from tests.fault.test_stack_gateway import PATIENCE
from tests.support.law_stack import IDCS, JURISDICTIONS, LawStack, until

MANY = ("AT", "BE", "BG", "CY", "CZ", "DK", "EE", "ES", "FI", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV", "PT")
SHARDS = 60
RULE = f"""\
  - name: more
    regions: [{", ".join(MANY)}]
    jurisdictions: [EU]
    idcs: {{fra: 60, ams: 40}}
    shards: {SHARDS}
"""


async def test_laws_l1_and_l2_survive_a_controller_that_is_killed_in_the_middle_of_an_assignment(
    laws: LawStack,
) -> None:
    async with laws.database("fra") as connection, connection.transaction():
        # Nothing opens in fra while this is held: the controller is in the middle of its work for sure.
        await connection.execute("LOCK TABLE shard_fences IN SHARE ROW EXCLUSIVE MODE")
        laws.document = laws.document.replace("access:\n", f"{RULE}access:\n")
        await laws.apply(laws.document)
        await until(lambda: _is_waiting(laws), PATIENCE, "the controller does not come to the fences of fra")
        pid = laws.stack.signal("controller", SIGKILL)
        records = await laws.shard_records()
        assert any(record.phase == Phase.OPENING for record in records.values())
    await until(lambda: _has_new_pid(laws, pid), PATIENCE, "the controller did not come back")
    await until(lambda: _is_all_served(laws), PATIENCE, "shards stay closed")
    await laws.check_fences()
    records = await laws.shard_records()
    fences = {idc: await laws.fences(idc) for idc in IDCS}
    for (region_code, shard), record in records.items():
        assert IDCS[record.owner] == JURISDICTIONS.get(region_code, "EU")
        assert fences[record.owner][region_code, shard].epoch == record.epoch == 1
    shares = {idc: sum(record.owner == idc for (code, _), record in records.items() if code in MANY) for idc in IDCS}
    assert shares == {"fra": 648, "ams": 432, "sha": 0, "sin": 0}


async def _is_waiting(laws: LawStack) -> bool:
    """Whether every shard has an owner, and somebody waits for the fences of fra."""
    if len(await laws.shard_records()) < SHARDS * len(MANY) + 16:
        return False
    async with laws.database("fra") as connection:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))


async def _is_all_served(laws: LawStack) -> bool:
    records = (await laws.shard_records()).values()
    return len(records) == SHARDS * len(MANY) + 16 and all(record.phase == Phase.SERVING for record in records)


async def _has_new_pid(laws: LawStack, pid: int) -> bool:
    return laws.stack.pid("controller") != pid
