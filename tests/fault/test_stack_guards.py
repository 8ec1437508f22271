"""Each guard is first shown to matter: the same scenario with the guard and without it.

One gateway beside the stack runs without the guard (`tests.support.unguarded`); every scenario is driven by a pause, a
lock in the database, or a cut to etcd, and none by luck.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from policy.errors import AccessDenied, ShardUnavailable, TableTooOld, Unavailable
from policy.sharding import shard_of
from regiongate.v1 import row_service_pb2, types_pb2
from tests.support.extra_gateway import ExtraGateway, extra_gateway
from tests.support.law_stack import LawStack, calling, revoked, until
from tests.support.linearizability import Event, is_linearizable
from tests.support.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from policy.errors import RegiongateError
    from tests.support.law_stack import Answer, RawCaller

PATIENCE = 45
SHARDS = 4


async def test_laws_l2_and_l4_rest_on_the_fence(laws: LawStack) -> None:
    """A gateway whose view of etcd stands still goes on with a shard that has left its IDC."""
    key = await _key_of(laws, "fra", "fence")
    histories: dict[str, list[Event]] = {}
    async with _etcd_proxy(laws) as proxy, _pair(laws, "fra", "fence", etcd=proxy.address, hold_timeout=1) as pair:
        async with calling(laws.stack.gateway("ams")) as new:
            await _write(new, "DE", key)
            proxy.pause()
            async with _moved(laws, shard_of(key, SHARDS)):
                await until(lambda: _serves(new, key), PATIENCE, "the new owner does not serve")
                await new.put("DE", key, 2)
                for without, gateway in pair.items():
                    async with calling(gateway.address) as old:
                        history = [Event(True, 1, 0, 1), Event(True, 2, 2, 3)]
                        history += await _attempt(4, old.get("DE", key), value=None)
                        history += await _attempt(6, old.put("DE", key, 3), value=3)
                        history += await _attempt(8, new.get("DE", key), value=None)
                        histories[without] = history
        proxy.resume()
    assert [event.value for event in histories["nothing"]] == [1, 2, 2], "the old owner has read and written nothing"
    assert is_linearizable(histories["nothing"])
    assert [event.value for event in histories["fence"]] == [1, 2, 1, 3, 2], "a stale read, and a write that is lost"
    assert not is_linearizable(histories["fence"])


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


async def _serves(caller: RawCaller, key: str) -> bool:
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


async def test_laws_l3_and_l4_rest_on_remembered_requests(laws: LawStack) -> None:
    """A write is tried again after another one: it must not come back to life."""
    async with _beside(laws, "fra", "requests") as pair:
        for without, address in pair.items():
            key = await _key_of(laws, "fra", f"requests-{without}")
            async with calling(address) as caller:
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


async def test_law_l6_rests_on_freshness(laws: LawStack) -> None:
    """A gateway is cut off from etcd, its lease runs out, and the law changes."""
    key = await _key_of(laws, "fra", "freshness")
    async with _etcd_proxy(laws) as proxy, _pair(laws, "fra", "freshness", etcd=proxy.address) as pair:
        for gateway in pair.values():
            await _read_across(gateway, key)
        proxy.pause()
        effective = await laws.apply(revoked(laws.document))
        assert {gateway.name for gateway in pair.values()} <= set(effective.expired)
        for without, gateway in pair.items():
            async with calling(gateway.address, purpose="support", origin="sin") as asia:
                _check(await _outcome(asia.get("DE", key)), effective.revision, is_lawful=without == "nothing")
            async with calling(gateway.address) as home:
                assert (await home.get("DE", key)).values["spend"] == 1, "its own jurisdiction is served all the time"
        proxy.resume()


async def test_law_l6_at_the_owner_rests_on_judging_again_before_the_answer_leaves(laws: LawStack) -> None:
    """A read is accepted, the gateway sleeps, the law changes, and the gateway wakes up with the row in its hand."""
    key = await _key_of(laws, "fra", "again")
    async with _pair(laws, "fra", "second-judgement") as pair, AsyncExitStack() as stack:
        for gateway in pair.values():
            await _read_across(gateway, key)
        readings: dict[str, asyncio.Future[Answer]] = {}
        async with _locked(laws, "fra", "ACCESS EXCLUSIVE"):
            for without, gateway in pair.items():
                asia = await stack.enter_async_context(calling(gateway.address, purpose="support", origin="sin"))
                readings[without] = asyncio.ensure_future(asia.get("DE", key))
            await until(lambda: _waits(laws, "fra", 2), PATIENCE, "the reads do not reach the database")
            effective = await _apply_in_their_sleep(laws, pair)
        await until(lambda: _waits(laws, "fra", 0), PATIENCE, "the lock is not released")
        for without, gateway in pair.items():
            gateway.wake()
            _check(await _outcome(readings[without]), effective, is_lawful=without == "nothing")


async def test_law_l6_at_the_ingress_rests_on_judging_again_before_the_answer_leaves(laws: LawStack) -> None:
    """The owner has answered lawfully; the ingress sleeps with the answer in its socket until the law has changed."""
    key = await _key_of(laws, "fra", "ingress")
    async with (
        _pair(laws, "sin", "second-judgement") as pair,
        AsyncExitStack() as stack,
        calling(laws.stack.gateway("fra")) as home,
    ):
        await _write(home, "DE", key)
        readings: dict[str, asyncio.Future[Answer]] = {}
        async with _locked(laws, "fra", "ACCESS EXCLUSIVE"):
            for number, (without, gateway) in enumerate(pair.items(), 1):
                asia = await stack.enter_async_context(calling(gateway.address, purpose="support"))
                readings[without] = asyncio.ensure_future(asia.get("DE", key))
                await until(partial(_waits, laws, "fra", number), PATIENCE, "the read does not reach the database")
            for gateway in pair.values():
                gateway.pause()
        # Answered after the others, by the same gateway in the same order: the first answers are on their way.
        await home.get("DE", key)
        effective = await _apply_in_their_sleep(laws, pair)
        for without, gateway in pair.items():
            gateway.wake()
            _check(await _outcome(readings[without]), effective, is_lawful=without == "nothing")


async def test_law_l6_rests_on_judging_again_before_a_write_begins(laws: LawStack) -> None:
    """A write waits behind others in its gateway; when its turn comes, the law has changed."""
    async with _pair(laws, "sin", "beginning") as pair, AsyncExitStack() as stack:
        ahead: list[asyncio.Future[int]] = []
        crossings: dict[str, asyncio.Future[int]] = {}
        keys = {without: await _key_of(laws, "sin", f"begin-{without}", "SG") for without in pair}
        homes = {name: await stack.enter_async_context(calling(it.address)) for name, it in pair.items()}
        for without, home in homes.items():
            await _write(home, "SG", keys[without])
        async with _locked(laws, "sin", "SHARE"):
            for without, gateway in pair.items():
                for number in (1, 2):
                    # Two statements may be in flight: the next write waits in the gateway.
                    ahead.append(asyncio.ensure_future(homes[without].put("SG", f"{keys[without]}-{number}", 2)))
                    await until(partial(_waits, laws, "sin", len(ahead)), PATIENCE, "it does not wait")
                europe = await stack.enter_async_context(calling(gateway.address, purpose="billing", origin="fra"))
                crossings[without] = asyncio.ensure_future(europe.put("SG", keys[without], 2))
                # Asked after it on the same connection and answered, so it has been taken in.
                await europe.get("SG", keys[without])
            effective = await _apply_in_their_sleep(laws, pair)
        await until(lambda: _waits(laws, "sin", 0), PATIENCE, "the lock is not released")
        for gateway in pair.values():
            gateway.wake()
        await asyncio.gather(*ahead)
        outcomes = {without: await _outcome(crossing) for without, crossing in crossings.items()}
        stored = {row.key: row.spend for row in await laws.rows("sin")}
    assert isinstance(outcomes["nothing"], AccessDenied | TableTooOld), outcomes
    assert stored[keys["nothing"]] == 1, f"written against revision {effective}"
    assert isinstance(outcomes["beginning"], int), "without the guard it should have been written"
    assert stored[keys["beginning"]] == 2


async def test_withheld_columns_do_not_travel(laws: LawStack) -> None:
    """What the owner sends to the ingress is asked for as the ingress does, since the ingress would hide it again."""
    key = await _key_of(laws, "fra", "withheld")
    async with _beside(laws, "fra", "withholding", is_peer=True) as pair, calling(laws.stack.gateway("fra")) as home:
        await _write(home, "DE", key, name="somebody")
        for without, address in pair.items():
            result = await _ask_as_peer(address, key, "support")
            assert result.decision.rule == "eu-support"
            assert list(result.decision.withheld) == ["name"]
            assert ("name" in result.row.columns) == (without == "withholding")


async def test_law_l6_rests_on_the_owners_own_judgement(laws: LawStack) -> None:
    """An ingress forwards what no rule allows."""
    key = await _key_of(laws, "fra", "owner")
    async with (
        _beside(laws, "fra", "owners-judgement", is_peer=True) as pair,
        calling(laws.stack.gateway("fra")) as home,
    ):
        await _write(home, "DE", key, name="somebody")
        result = await _ask_as_peer(pair["nothing"], key, "")
        assert result.error.reason == "ACCESS_DENIED"
        assert result.error.metadata["rule"] == "europe"
        assert "name" in (await _ask_as_peer(pair["owners-judgement"], key, "")).row.columns


# ---- what the scenarios are made of ---------------------------------------------------------------------------------


@asynccontextmanager
async def _pair(laws: LawStack, idc: str, guard: str, **options: Any) -> AsyncIterator[dict[str, ExtraGateway]]:
    """Two gateways in one IDC, one of them without a guard."""
    async with AsyncExitStack() as stack:
        names = ("nothing", guard)
        enter = stack.enter_async_context
        started = await asyncio.gather(*(enter(extra_gateway(laws, idc, without=(it,), **options)) for it in names))
        yield dict(zip(names, started, strict=True))


@asynccontextmanager
async def _beside(laws: LawStack, idc: str, guard: str, *, is_peer: bool = False) -> AsyncIterator[dict[str, str]]:
    """The address of the IDC's own gateway, and that of one without a guard."""
    async with extra_gateway(laws, idc, without=(guard,)) as gateway:
        entry = laws.stack.idcs[idc]
        if is_peer:
            yield {"nothing": entry.peer, guard: gateway.peer_address}
        else:
            yield {"nothing": entry.gateway, guard: gateway.address}


def _etcd_proxy(laws: LawStack) -> TcpProxy:
    return TcpProxy(int(laws.stack.etcd_endpoints[0].rpartition(":")[2]))


async def _read_across(gateway: ExtraGateway, key: str) -> None:
    """Writes the row from home and reads it from Asia, which is lawful as yet."""
    async with calling(gateway.address) as home, calling(gateway.address, purpose="support", origin="sin") as asia:
        await _write(home, "DE", key)
        # On a busy machine a lease of two seconds may have to be taken again.
        await until(lambda: _answers(asia, key), PATIENCE, "the row cannot be read across the border")


async def _write(caller: RawCaller, region_code: str, key: str, name: str = "") -> None:
    """Writes 1 to a row; the gateway may still be finding its neighbours."""

    async def is_written() -> bool:
        try:
            await caller.put(region_code, key, 1, name=name)
        except Unavailable:
            return False
        return True

    await until(is_written, PATIENCE, "the row cannot be written")


async def _answers(caller: RawCaller, key: str) -> bool:
    try:
        return (await caller.get("DE", key)).rule == "eu-support"
    except Unavailable:
        return False


async def _apply_in_their_sleep(laws: LawStack, gateways: Mapping[str, ExtraGateway]) -> int:
    """Revokes the rules while the gateways sleep; returns the revision that is effective without them."""
    for gateway in gateways.values():
        gateway.pause()
    effective = await laws.apply(revoked(laws.document))
    assert {gateway.name for gateway in gateways.values()} <= set(effective.expired)
    return effective.revision


async def _key_of(laws: LawStack, idc: str, name: str, region_code: str = "DE") -> str:
    """A key whose shard belongs to the IDC."""
    owners = await laws.shard_records()
    names = map(f"{name}-{{}}".format, range(1000))
    return next(key for key in names if owners[region_code, shard_of(key, SHARDS)].owner == idc)


async def _ask_as_peer(address: str, key: str, purpose: str) -> row_service_pb2.OperationResult:
    """Reads a row of DE as sin's gateway would."""
    request = row_service_pb2.ExchangeRequest(purpose=purpose)
    request.operations.add(
        id=1, dataset="customers", region_code="DE", key=types_pb2.Key(string_key=key)
    ).get.SetInParent()
    async with calling(address, ingress="sin") as sin:
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
