"""Each guard is first shown to matter: the same scenario with the guard and without it.

One gateway beside the stack runs without the guard (`tests.support.unguarded`); every scenario is driven by a pause, a
lock in the database, or a cut to etcd, and none by luck.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from policy.errors import AccessDenied, ShardUnavailable, TableTooOld, Unavailable
from policy.sharding import shard_of
from regiongate.v1 import row_service_pb2, types_pb2
from tests.support.extra_gateway import ExtraGateway, extra_gateway
from tests.support.law_stack import LawStack, calling, revoked, until
from tests.support.linearizability import Event, is_linearizable
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from policy.errors import RegiongateError
    from tests.support.law_stack import Answer, RawCaller

PATIENCE = 45
SHARDS = 4


@pytest.mark.parametrize("without", ["nothing", "fence"])
async def test_laws_l2_and_l4_rest_on_the_fence(laws: LawStack, without: str) -> None:
    """A gateway whose view of etcd stands still goes on with a shard that has left its IDC."""
    key = await _key_of(laws, "fra", f"fence-{without}")
    port = int(laws.stack.etcd_endpoints[0].rpartition(":")[2])
    async with (
        TcpProxy(port) as proxy,
        extra_gateway(laws, "fra", without=(without,), etcd=proxy.address, hold_timeout=1) as stale,
        calling(stale.address) as old,
        calling(laws.stack.gateway("ams")) as new,
    ):
        await old.put("DE", key, 1)
        proxy.pause()
        history = [Event(True, 1, 0, 1)]
        async with _moved(laws, shard_of(key, SHARDS)):
            await until(lambda: _owns(new, key), PATIENCE, "the new owner does not serve")
            await new.put("DE", key, 2)
            history.append(Event(True, 2, 2, 3))
            history += await _attempt(4, old.get("DE", key), value=None)
            history += await _attempt(6, old.put("DE", key, 3), value=3)
            history += await _attempt(8, new.get("DE", key), value=None)
        proxy.resume()
    assert is_linearizable(history) == (without == "nothing"), history
    if without == "nothing":
        assert [event.value for event in history] == [1, 2, 2], "the old owner has read and written nothing"


@asynccontextmanager
async def _moved(laws: LawStack, shard: int) -> AsyncIterator[None]:
    """Hands a shard of DE over from fra to ams, as a move will do it, and back."""
    where = ("DE", shard)
    copy = "SELECT region_code, key, shard, seq, update_time, deleted, name, spend FROM rows_customers"
    async with laws.database("fra") as fra, laws.database("ams") as ams, laws.etcd() as etcd:
        await fra.execute("UPDATE shard_fences SET mode = 'closed' WHERE region_code = $1 AND shard = $2", *where)
        rows = await fra.fetch(f"{copy} WHERE region_code = $1 AND shard = $2", *where)
        last = await fra.fetchval("SELECT last_seq FROM shard_fences WHERE region_code = $1 AND shard = $2", *where)
        await ams.executemany("INSERT INTO rows_customers VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", rows)
        await ams.execute(
            "INSERT INTO shard_fences (region_code, shard, epoch, mode, last_seq) VALUES ($1, $2, $3, 'serving', $4)",
            *where,
            (record := (await laws.shard_records())[where]).epoch + 1,
            last,
        )
        await etcd.put(laws.keys.shard(*where), replace(record, owner="ams", epoch=record.epoch + 1).encode())
        try:
            yield
        finally:
            for table in ("rows_customers", "shard_fences"):
                await ams.execute(f"DELETE FROM {table} WHERE region_code = $1 AND shard = $2", *where)
            back = replace(record, epoch=record.epoch + 2)
            await fra.execute(
                "UPDATE shard_fences SET mode = 'serving', epoch = $3 WHERE region_code = $1 AND shard = $2",
                *where,
                back.epoch,
            )
            await etcd.put(laws.keys.shard(*where), back.encode())


async def _owns(caller: RawCaller, key: str) -> bool:
    try:
        await caller.get("DE", key, timeout=2)
    except Unavailable:
        return False
    return True


async def _attempt(start: int, call: object, value: int | None) -> list[Event]:
    """One operation of a history: a write of `value`, or a read without one; nothing when it was refused."""
    try:
        answer = await call  # type: ignore[misc]
    except ShardUnavailable:
        return []
    if value is not None:
        return [Event(True, value, start, start + 1)]
    return [Event(False, answer.values["spend"], start, start + 1)]


@pytest.mark.parametrize("without", ["nothing", "requests"])
async def test_laws_l3_and_l4_rest_on_remembered_requests(laws: LawStack, without: str) -> None:
    """A write is tried again after another one: it must not come back to life."""
    key = await _key_of(laws, "fra", f"requests-{without}")
    async with extra_gateway(laws, "fra", without=(without,)) as gateway, calling(gateway.address) as caller:
        first = await caller.put("DE", key, 1, request_id=f"{key}-1")
        seen = [(await caller.get("DE", key)).values["spend"]]
        await caller.put("DE", key, 2, request_id=f"{key}-2")
        seen.append((await caller.get("DE", key)).values["spend"])
        again = await caller.put("DE", key, 1, request_id=f"{key}-1")
        seen.append((await caller.get("DE", key)).values["spend"])
    # The first write has one call and one late answer: its retry's.
    history = [Event(True, 1, 0, 9), Event(True, 2, 3, 4)]
    history += [Event(False, value, start, start + 1) for value, start in zip(seen, (2, 5, 10), strict=True)]
    assert is_linearizable(history) == (without == "nothing"), seen
    assert (again == first) == (without == "nothing"), "a retry returns the first result"


@pytest.mark.parametrize("without", ["nothing", "freshness"])
async def test_law_l6_rests_on_freshness(laws: LawStack, without: str) -> None:
    """A gateway is cut off from etcd, its lease runs out, and the law changes."""
    port = int(laws.stack.etcd_endpoints[0].rpartition(":")[2])
    async with (
        TcpProxy(port) as proxy,
        extra_gateway(laws, "fra", without=(without,), etcd=proxy.address) as gateway,
        calling(gateway.address, purpose="support", origin="sin") as asia,
        calling(gateway.address) as home,
    ):
        key = await _key_of(laws, "fra", f"fresh-{without}")
        await home.put("DE", key, 1)
        assert (await asia.get("DE", key)).rule == "eu-support"
        proxy.pause()
        effective = await laws.apply(revoked(laws.document))
        assert gateway.name in effective.expired
        _check(await _outcome(asia.get("DE", key)), effective.revision, is_lawful=without == "nothing")
        assert (await home.get("DE", key)).values["spend"] == 1, "its own jurisdiction is served all the time"
        proxy.resume()


@pytest.mark.parametrize("without", ["nothing", "second-judgement"])
async def test_law_l6_at_the_owner_rests_on_judging_again_before_the_answer_leaves(
    laws: LawStack, without: str
) -> None:
    """A read is accepted, the gateway sleeps, the law changes, and the gateway wakes up with the row in its hand."""
    key = await _key_of(laws, "fra", f"again-{without}")
    async with (
        extra_gateway(laws, "fra", without=(without,)) as gateway,
        calling(gateway.address, purpose="support", origin="sin") as asia,
        calling(gateway.address) as home,
    ):
        await home.put("DE", key, 1)
        await asia.get("DE", key)
        async with _locked(laws, "fra", "ACCESS EXCLUSIVE"):
            reading = asyncio.ensure_future(asia.get("DE", key))
            await until(lambda: _waits(laws, "fra", 1), PATIENCE, "the read does not reach the database")
            gateway.pause()
            effective = await laws.apply(revoked(laws.document))
            assert gateway.name in effective.expired
        await until(lambda: _waits(laws, "fra", 0), PATIENCE, "the lock is not released")
        gateway.wake()
        _check(await _outcome(reading), effective.revision, is_lawful=without == "nothing")


@pytest.mark.parametrize("without", ["nothing", "second-judgement"])
async def test_law_l6_at_the_ingress_rests_on_judging_again_before_the_answer_leaves(
    laws: LawStack, without: str
) -> None:
    """The owner has answered lawfully; the ingress sleeps with the answer in its socket until the law has changed."""
    key = await _key_of(laws, "fra", f"ingress-{without}")
    async with (
        extra_gateway(laws, "sin", without=(without,)) as gateway,
        calling(gateway.address, purpose="support") as asia,
        calling(laws.stack.gateway("fra")) as home,
    ):
        await home.put("DE", key, 1)
        await asia.get("DE", key)
        async with _locked(laws, "fra", "ACCESS EXCLUSIVE"):
            reading = asyncio.ensure_future(asia.get("DE", key))
            await until(lambda: _waits(laws, "fra", 1), PATIENCE, "the read does not reach the owner's database")
            gateway.pause()
        # Answered after the first one, by the same gateway in the same order: the first answer is on its way.
        await home.get("DE", key)
        effective = await laws.apply(revoked(laws.document))
        assert gateway.name in effective.expired
        gateway.wake()
        _check(await _outcome(reading), effective.revision, is_lawful=without == "nothing")


@pytest.mark.parametrize("without", ["nothing", "beginning"])
async def test_law_l6_rests_on_judging_again_before_a_write_begins(laws: LawStack, without: str) -> None:
    """A write waits behind others in its gateway; when its turn comes, the law has changed."""
    keys = [await _key_of(laws, "sin", f"begin-{without}-{number}", "SG") for number in range(3)]
    async with (
        extra_gateway(laws, "sin", without=(without,)) as gateway,
        calling(gateway.address, purpose="billing", origin="fra") as europe,
        calling(gateway.address) as home,
    ):
        for key in keys:
            await home.put("SG", key, 1)
        async with _locked(laws, "sin", "SHARE"):
            ahead = []
            for number in (1, 2):
                ahead.append(asyncio.ensure_future(home.put("SG", keys[number], 2)))
                await until(lambda number=number: _waits(laws, "sin", number), PATIENCE, "it does not wait")
            crossing = asyncio.ensure_future(europe.put("SG", keys[0], 2))
            # Asked after it on the same connection and answered, so it has been taken in.
            await europe.get("SG", keys[0])
            gateway.pause()
            effective = await laws.apply(revoked(laws.document))
            assert gateway.name in effective.expired
        await until(lambda: _waits(laws, "sin", 0), PATIENCE, "the lock is not released")
        gateway.wake()
        await asyncio.gather(*ahead)
        outcome = await _outcome(crossing)
        stored = next(row.spend for row in await laws.rows("sin") if row.key == keys[0])
    if without == "nothing":
        assert isinstance(outcome, AccessDenied | TableTooOld), outcome
        assert stored == 1
    else:
        assert isinstance(outcome, int), "without the guard it should have been written"
        assert stored == 2


@pytest.mark.parametrize("without", ["nothing", "withholding"])
async def test_withheld_columns_do_not_travel(laws: LawStack, without: str) -> None:
    """What the owner sends to the ingress is asked for as the ingress does, since the ingress would hide it again."""
    key = await _key_of(laws, "fra", f"withheld-{without}")
    async with extra_gateway(laws, "fra", without=(without,)) as gateway, calling(gateway.address) as home:
        await home.put("DE", key, 1, name="somebody")
        result = await _ask_as_peer(gateway, key, "support")
    assert result.decision.rule == "eu-support"
    assert list(result.decision.withheld) == ["name"]
    assert ("name" in result.row.columns) == (without == "withholding")


@pytest.mark.parametrize("without", ["nothing", "owners-judgement"])
async def test_law_l6_rests_on_the_owners_own_judgement(laws: LawStack, without: str) -> None:
    """An ingress forwards what no rule allows."""
    key = await _key_of(laws, "fra", f"owner-{without}")
    async with extra_gateway(laws, "fra", without=(without,)) as gateway, calling(gateway.address) as home:
        await home.put("DE", key, 1, name="somebody")
        result = await _ask_as_peer(gateway, key, "")
    if without == "nothing":
        assert result.error.reason == "ACCESS_DENIED"
        assert result.error.metadata["rule"] == "europe"
    else:
        assert "name" in result.row.columns


# ---- what the scenarios are made of ---------------------------------------------------------------------------------


async def _key_of(laws: LawStack, idc: str, name: str, region_code: str = "DE") -> str:
    """A key whose shard belongs to the IDC."""
    owners = await laws.shard_records()
    names = map(f"{name}-{{}}".format, range(1000))
    return next(key for key in names if owners[region_code, shard_of(key, SHARDS)].owner == idc)


async def _ask_as_peer(gateway: ExtraGateway, key: str, purpose: str) -> row_service_pb2.OperationResult:
    """Reads a row of DE as sin's gateway would."""
    request = row_service_pb2.ExchangeRequest(purpose=purpose)
    request.operations.add(
        id=1, dataset="customers", region_code="DE", key=types_pb2.Key(string_key=key)
    ).get.SetInParent()
    async with calling(gateway.peer_address, ingress="sin") as sin:
        stream = sin.rows.Exchange(metadata=sin.metadata, timeout=10)
        await stream.write(request)
        answer = await stream.read()
        stream.cancel()
    return answer.results[0]


@asynccontextmanager
async def _locked(laws: LawStack, idc: str, mode: str) -> AsyncIterator[None]:
    """Holds up what touches the customers in an IDC's database."""
    async with laws.database(idc) as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE rows_customers IN {mode} MODE")
        yield


async def _waits(laws: LawStack, idc: str, statements: int) -> bool:
    """Whether exactly so many statements wait for a lock in the IDC's database."""
    waiting = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
    async with laws.database(idc) as connection:
        return await connection.fetchval(waiting) == statements


async def _outcome(call: object) -> Answer | int | RegiongateError:
    try:
        return await call  # type: ignore[misc]
    except (AccessDenied, TableTooOld) as error:
        return error


def _check(outcome: Answer | int | RegiongateError, effective: int, *, is_lawful: bool) -> None:
    """After `apply` has returned, a row must not leave by the revision before."""
    if is_lawful:
        assert isinstance(outcome, AccessDenied | TableTooOld), outcome
        if isinstance(outcome, AccessDenied):
            assert outcome.policy_revision == effective
    else:
        assert not isinstance(outcome, Exception | int), "without the guard the row should have left"
        assert outcome.revision < effective, "by the old law"
