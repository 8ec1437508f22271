"""A stack whose shards move to and fro between two IDCs, steered by controllers that the test runs itself.

All shards of DE lie in `fra` or in `ams`, and go to the other one by a change of the weights, so that each test leaves
a stack that the next one can use: at rest, all in one place.
"""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import TYPE_CHECKING, NamedTuple

import regiongate
from policy.model import Phase
from policy.records import MoveRecord, RolloutRecord
from policy.sharding import shard_of
from regiongate.v1 import policy_service_pb2 as pb
from tests.support.law_stack import LawStack, Stored, calling, running_law_stack, until
from tests.support.move_process import SteeredController, steered
from tests.support.workload import Workload, check_stored, under_load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

SHARDS = 16
PATIENCE = 60
"""Seconds for processes to come back, and moves to end, on a busy machine."""
ENDS = ("fra", "ams")
IDCS = {"fra": "DE", "ams": "NL", "sin": "SG"}

_LAW = """\
version: 1
idcs:
  fra: {jurisdiction: DE}
  ams: {jurisdiction: NL}
  sin: {jurisdiction: SG}
residency:
  - {name: germany, regions: [DE], jurisdictions: [JURISDICTIONS], idcs: {WEIGHTS}, shards: 16}
  - {name: asia, regions: [SG], jurisdictions: [SG], idcs: {sin: 1}, shards: 2}
access:
  - {name: asia-billing, regions: [DE], from: [SG], operations: [read, write], purposes: [billing]}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
"""
KEPT = frozenset({"shard_fences", "shard_imports", "shard_purges"})
"""Tables that say what has become of shards, and hold nothing of their rows."""
_SHARD_TABLES = """
SELECT table_name FROM information_schema.columns
WHERE table_schema = 'public' AND column_name IN ('region_code', 'shard')
GROUP BY table_name HAVING count(*) = 2
"""
_TAKE_SEQS = """
UPDATE shard_fences SET last_seq = last_seq + $2, last_time = now() WHERE region_code = 'DE' AND shard = $1
RETURNING last_seq
"""


def law(home: str, *, jurisdictions: str = "DE, NL") -> str:
    """The policy that has all shards of DE in one IDC."""
    weights = f"{home}: 100" if jurisdictions != "DE, NL" else ", ".join(f"{it}: {100 * (it == home)}" for it in ENDS)
    return _LAW.replace("JURISDICTIONS", jurisdictions).replace("WEIGHTS", weights)


class FenceRow(NamedTuple):
    """A fence as an IDC's database holds it."""

    epoch: int
    mode: str
    attempt: int
    last_seq: int


@contextmanager
def running_move_stack() -> Iterator[MoveStack]:
    """A stack without a controller, under the policy that has everything in `fra`."""
    with running_law_stack(law("fra"), arguments=("--controllers", "0")) as laws:
        yield MoveStack(laws.stack, law("fra"))


@dataclass
class MoveStack(LawStack):
    """What tests of moves ask of the stack."""

    # ---- processes --------------------------------------------------------------------------------------------------

    def controller(
        self, *points: str, without: tuple[str, ...] = (), **settings: object
    ) -> AbstractAsyncContextManager[SteeredController]:
        """A controller of the test's own, which stops at the points."""
        return steered(self, points, without, settings)

    def kill(self, name: str) -> int:
        """Kills a process of the stack; returns its id."""
        return self.stack.signal(name, SIGKILL)

    async def strike(self, victim: str, controller: SteeredController, source: str, target: str) -> None:
        """Kills `controller`, `etcd`, or source or target's `gateway` or `database`; returns when all is at rest.

        The controller that lives goes on at once, and so meets the dead.
        """
        if victim == "controller":
            await controller.kill()
            async with self.controller():
                await self.rest()
            return
        role, _, kind = victim.partition(" ")
        idc = source if role == "source" else target
        name = {"gateway": f"gateway-{idc}", "database": f"postgres-{idc}"}.get(kind, victim)
        pid = self.kill(name)
        controller.go()
        await self.wait_back(name, pid)
        await self.rest()

    async def wait_back(self, name: str, pid: int) -> None:
        """Waits until a process that was killed has been started again."""
        await until(partial(self._is_other, name, pid), PATIENCE, f"{name} did not come back")

    async def _is_other(self, name: str, pid: int) -> bool:
        return self.stack.pid(name) != pid

    @asynccontextmanager
    async def asleep(self, name: str) -> AsyncIterator[None]:
        """A process of the stack sleeps."""
        self.stack.signal(name, SIGSTOP)
        try:
            yield
        finally:
            self.stack.signal(name, SIGCONT)

    @asynccontextmanager
    async def down(self, name: str) -> AsyncIterator[None]:
        """A process of the stack is dead, and stays so for the block: who would start it again sleeps."""
        self.stack.process.send_signal(SIGSTOP)
        try:
            pid = self.kill(name)
            yield
        finally:
            self.stack.process.send_signal(SIGCONT)
        await self.wait_back(name, pid)

    async def heal(self, seconds: float = PATIENCE) -> None:
        """Waits until every gateway can do all of its work."""
        for idc in IDCS:
            await until(partial(self.is_ready, idc), seconds, f"{idc} did not become ready")

    # ---- orders -----------------------------------------------------------------------------------------------------

    async def order(self, home: str, *, door: str = "sin", **words: str) -> str:
        """Has all shards of DE go to one IDC; returns the rollout."""
        async with calling(self.stack.gateway(door)) as caller:
            # Where single shards have been moved, the weights alone would not bring them back.
            request = pb.ApplyPolicyRequest(document=law(home, **words), author="test", rebalance=True)
            return (await caller.call(caller.policies.ApplyPolicy, request, PATIENCE)).rollout

    async def move_shard(self, shard: int, target: str) -> str:
        """Has one shard go there; returns the rollout."""
        async with calling(self.stack.gateway("sin")) as caller:
            request = pb.MoveShardRequest(region_code="DE", shard=shard, to_idc=target, author="test")
            return (await caller.call(caller.policies.MoveShard, request)).rollout

    async def cancel(self, rollout: str) -> pb.CancelRolloutResponse:
        """Calls a rollout off."""
        async with calling(self.stack.gateway("sin")) as caller:
            request = pb.CancelRolloutRequest(rollout=rollout, author="test")
            return await caller.call(caller.policies.CancelRollout, request)

    async def home(self) -> str:
        """Where all shards of DE are."""
        (home,) = {record.owner for (code, _), record in (await self.shard_records()).items() if code == "DE"}
        return home

    async def is_in_one_place(self) -> bool:
        """Whether every shard rests, and all of DE in one IDC."""
        records = await self.shard_records()
        return await self._is_at_rest() and len({it.owner for (code, _), it in records.items() if code == "DE"}) == 1

    async def gather(self) -> None:
        """Brings all shards of DE to where most of them are."""
        async with self.controller():
            await self.rest()
            records = await self.shard_records()
            home = Counter(record.owner for (code, _), record in records.items() if code == "DE").most_common(1)[0][0]
            for (code, shard), record in records.items():
                if code == "DE" and record.owner != home:
                    await self.move_shard(shard, home)
            await self.rest()

    async def ends(self) -> tuple[str, str]:
        """Where all shards of DE are, and where they are not."""
        home = await self.home()
        return home, next(idc for idc in ENDS if idc != home)

    # ---- what etcd says ---------------------------------------------------------------------------------------------

    async def phases(self) -> dict[int, str]:
        """The phase of each shard of DE."""
        return {shard: record.phase for (code, shard), record in (await self.shard_records()).items() if code == "DE"}

    async def rollouts(self) -> dict[str, RolloutRecord]:
        """Every rollout."""
        async with self.etcd() as etcd:
            records = [RolloutRecord.decode(item.value) for item in (await etcd.list(self.keys.rollouts)).items]
            return {record.rollout: record for record in records}

    async def movements(self, rollout: str) -> dict[int, MoveRecord]:
        """The moves of a rollout that have begun."""
        async with self.etcd() as etcd:
            records = [MoveRecord.decode(item.value) for item in (await etcd.list(self.keys.moves_of(rollout))).items]
            return {record.shard: record for record in records}

    async def rest(self, seconds: float = PATIENCE) -> None:
        """Waits until no shard is on its way and no rollout is open."""
        try:
            await until(self._is_at_rest, seconds, "the moves do not end")
        except AssertionError:
            notes = [record.note for record in (await self.rollouts()).values() if not record.is_ended]
            raise AssertionError(f"the moves do not end: {notes}, {await self.phases()}") from None

    async def _is_at_rest(self) -> bool:
        records = await self.shard_records()
        if len(records) < SHARDS + 2 or any(record.phase != Phase.SERVING for record in records.values()):
            return False
        return all(record.is_ended for record in (await self.rollouts()).values())

    # ---- what is stored ---------------------------------------------------------------------------------------------

    async def fence_rows(self, idc: str) -> dict[tuple[str, int], FenceRow]:
        """Every fence of an IDC's database, whole."""
        async with self.database(idc) as connection:
            records = await connection.fetch(
                "SELECT region_code, shard, epoch, mode, attempt, last_seq FROM shard_fences"
            )
            return {(r[0], r[1]): FenceRow(*tuple(r.values())[2:]) for r in records}

    async def counts(self, idc: str) -> dict[tuple[str, int], int]:
        """How much an IDC's database holds of each shard, over all of its tables."""
        counts: dict[tuple[str, int], int] = {}
        async with self.database(idc) as connection:
            for (table,) in await connection.fetch(_SHARD_TABLES):
                if table in KEPT:
                    continue
                sql = f"SELECT region_code, shard, count(*) FROM {table} GROUP BY region_code, shard"
                for region_code, shard, count in await connection.fetch(sql):
                    counts[region_code, shard] = counts.get((region_code, shard), 0) + count
        return counts

    async def check_rest(self) -> list[Stored]:
        """Laws L1 and L2 at rest: one open fence for each shard, at its owner, and nothing of a shard elsewhere."""
        records = await self.shard_records()
        found: list[Stored] = []
        for idc in IDCS:
            fences = await self.fence_rows(idc)
            assert fences.keys() <= records.keys(), "a fence of a shard that nobody knows"
            for shard, record in records.items():
                fence = fences.get(shard)
                if record.owner == idc:
                    assert fence is not None, (shard, "has no fence at its owner")
                    assert (fence.mode, fence.epoch) == ("serving", record.epoch), (shard, idc, fence, record)
                else:
                    # A move that was called off has closed its target at the epoch that it would have had.
                    assert fence is None or (fence.mode == "closed" and fence.epoch <= record.epoch + 1), (shard, fence)
                    assert fence is None or fence.attempt <= record.attempt, (shard, fence)
            for shard, count in (await self.counts(idc)).items():
                assert records[shard].owner == idc, f"{count} rows of {shard} are left in {idc}"
            rows = await self.rows(idc)
            for row in rows:
                assert shard_of(row.key, SHARDS if row.region_code == "DE" else 2) == row.shard
                assert row.seq <= fences[row.region_code, row.shard].last_seq, f"a row beyond the fence of {row.shard}"
            found += rows
        assert len({(row.region_code, row.key) for row in found}) == len(found), "a row lies in two IDCs"
        return found

    async def fill(self, idc: str, shard: int, rows: int) -> None:
        """Puts many rows into one shard of DE, straight into the database of its owner."""
        keys = itertools.islice(
            (key for key in map("bulk-{}".format, itertools.count()) if shard_of(key, SHARDS) == shard), rows
        )
        async with self.database(idc) as connection, connection.transaction():
            last = await connection.fetchval(_TAKE_SEQS, shard, rows)
            now = datetime.now(UTC)
            records = (("DE", key, shard, last - rows + n, now, False, "b" * 100, n) for n, key in enumerate(keys, 1))
            columns = ("region_code", "key", "shard", "seq", "update_time", "deleted", "name", "spend")
            await connection.copy_records_to_table("rows_customers", records=records, columns=columns)

    async def clear(self, shard: int) -> None:
        """Takes those rows away, wherever they are."""
        for idc in IDCS:
            async with self.database(idc) as connection:
                await connection.execute("DELETE FROM rows_customers WHERE shard = $1 AND key LIKE 'bulk-%'", shard)

    # ---- load -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def load(
        self, name: str, *, doors: Sequence[str] = ("fra", "ams", "sin"), workers: int = 12, per_shard: int = 2
    ) -> AsyncIterator[Workload]:
        """Reads and writes of every shard, judged at the end: laws L1 to L4.

        `doors` are IDCs, or addresses of gateways.
        """
        keys = [("DE", key) for key in keys_of(name, per_shard)]
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    regiongate.connect(self.stack.gateway(door) if door in IDCS else door, purpose="billing")
                )
                for door in doors
            ]
            workload = Workload(clients, keys, workers=workers, timeout=30, seed=len(name))
            async with under_load(workload):
                await workload.progress(100)
                yield workload
                await self.rest()
                await workload.progress(30)
        rows = await self.check_rest()
        assert not workload.violations()
        check_stored(workload, rows)


def keys_of(name: str, per_shard: int) -> list[str]:
    """Some keys in each shard of DE."""
    left = dict.fromkeys(range(SHARDS), per_shard)
    found: list[str] = []
    number = 0
    while any(left.values()):
        key = f"{name}-{number}"
        number += 1
        if left[shard_of(key, SHARDS)]:
            left[shard_of(key, SHARDS)] -= 1
            found.append(key)
    return found
