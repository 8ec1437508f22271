"""Handlers that fail: what is tried again, what is set aside, and what goes on."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

import regiongate
from policy.errors import PeerUnreachable
from regionjobs.definition import Format, OnPoison, Retry
from rowstore.jobs import registry
from tests.support.job_failures import Poison, enter, made, poisoned
from tests.support.job_stores import take

KEYS = "abcdefgh"


@pytest.mark.parametrize(
    ("bad", "batch_size"), [("a", 3), ("h", 3), ("d", 100), ("ah", 100), ("cde", 3), ("abcdefg", 100), (KEYS, 3)]
)
async def test_poisoned_rows_are_set_aside_and_the_rest_is_handled_once(failing, bad, batch_size):
    await failing.put(*KEYS)
    tally = await failing.work(made(poisoned(*failing.keys(bad)), batch_size=batch_size))
    good = [seq for seq, key in enumerate(KEYS, 1) if key not in bad]
    assert await failing.ledger() == good
    rows = await failing.asides()
    assert [(row.key, row.seq) for row in rows] == [
        (failing.key(key), seq) for seq, key in enumerate(KEYS, 1) if key in bad
    ]
    assert {(row.attempts, row.error_class, row.is_replay_wanted) for row in rows} <= {(3, "Poison", False)}
    offset = await failing.offset()
    assert (offset["seq"], offset["failures"], offset["last_error"]) == (8, 0, "")
    assert (tally.rows, offset["rows"], tally.set_aside) == (len(good), len(good), len(bad))


async def test_a_row_that_fails_only_at_first_is_tried_again_with_a_pause_and_handled(failing):
    attempts = []

    async def handle(batch):
        attempts.append((batch.attempt, asyncio.get_running_loop().time()))
        await enter(batch)
        if len(attempts) < 3:
            raise Poison

    await failing.put("a", "b")
    retry = Retry(3, timedelta(milliseconds=20), timedelta(milliseconds=40))
    tally = await failing.work(made(handle, retry=retry))
    assert [attempt for attempt, _ in attempts] == [1, 2, 3]
    assert attempts[1][1] - attempts[0][1] >= 0.02
    assert attempts[2][1] - attempts[1][1] >= 0.04
    assert (await failing.ledger(), await failing.asides(), tally.failures) == ([1, 2], [], 2)


async def test_a_shard_that_waits_for_its_next_try_gives_its_slot_back(failing):
    await failing.put("a")
    retry = Retry(3, timedelta(seconds=20), timedelta(seconds=20))
    begun = await failing.begin(made(poisoned(failing.key("a")), retry=retry))
    assert await begun.go() == 20.0
    offset = await failing.offset()
    assert (offset["failures"], offset["last_error"]) == (1, "Poison")
    await begun.close()


async def test_failures_count_over_runners(failing):
    await failing.put("a", "b")
    tries = []

    async def handle(batch):
        tries.append((batch.attempt, len(batch)))
        await enter(batch)
        if len(batch) == 2:
            raise Poison

    job = made(handle, retry=Retry(3, timedelta(seconds=20), timedelta(seconds=20)))
    for runner in ("one.1", "two.2"):
        begun = await failing.begin(job, runner=runner)
        assert await begun.go() == 20.0
    await failing.work(job, runner="three.3")
    assert tries == [(1, 2), (2, 2), (3, 2), (3, 1), (3, 1)]
    assert await failing.ledger() == [1, 2]


async def test_whoever_has_lost_the_shard_sets_nothing_aside(failing):
    await failing.put("a")

    async def handle(batch):
        await enter(batch)
        if batch.attempt == 3:
            await take(failing.database, "two.2", shard=failing.shard)
        raise Poison

    begun = await failing.begin(made(handle))
    waits = [await begun.go() for _ in range(3)]
    assert (await failing.asides(), await failing.ledger()) == ([], [])
    # The last try counts for nobody.
    assert (await failing.offset())["failures"] == 2
    assert all(waits)


@pytest.mark.parametrize("where", [0, 6])
async def test_a_job_that_is_to_stop_stops_in_that_shard_until_it_is_resumed(failing, where):
    await failing.put(*KEYS)
    bad = {failing.key(KEYS[where])}

    async def handle(batch):
        await enter(batch)
        if bad & {row.key for row in batch.rows}:
            raise Poison

    job = made(handle, on_poison=OnPoison.STOP, batch_size=4)
    tally = await failing.work(job)
    assert (tally.stopped, tally.set_aside, await failing.asides()) == (1, 0, [])
    assert await failing.ledger() == list(range(1, where + 1))
    offset = await failing.offset()
    assert (offset["is_stopped"], offset["last_error"], offset["seq"]) == (True, "Poison", where)
    status = await registry.status(failing.database.fetch, await registry.get(failing.database.fetch, "settle"), ["DE"])
    assert status.shards_stopped == 1
    bad.clear()
    assert await registry.resume(failing.database.fetch, "settle")
    await failing.work(job)
    assert await failing.ledger() == list(range(1, 9))
    assert not (await failing.offset())["is_stopped"]


async def test_a_row_whose_error_postgresql_cannot_hold_is_set_aside_all_the_same(failing):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    await failing.put(*"abcd")
    errors = {"a": ValueError("nul \x00 \udc80"), "b": Mute(), "c": ValueError("x" * 1_000_000), "d": KeyError("d")}

    async def handle(batch):
        raise errors[batch.rows[0].key[0]]

    await failing.work(made(handle, batch_size=1))
    texts = [row.error for row in await failing.asides()]
    assert [text[:5] for text in texts] == ["nul \ufffd", "", "xxxxx", "'d'"]
    assert len(texts[2]) == 10_000


async def test_an_arrow_batch_is_taken_apart_too(failing):
    def handle(batch):
        if failing.key("c") in batch.table.column("key").to_pylist():
            raise Poison

    await failing.put(*"abcde")
    tally = await failing.work(made(handle, format=Format.ARROW))
    assert (await failing.aside_keys(), tally.rows) == (failing.keys("c"), 4)


async def test_a_write_to_another_region_that_a_rule_forbids_fails_and_nothing_is_half_done(failing, stack):
    await failing.put("good", "bad", "also-good")

    async def handle(batch):
        await enter(batch)
        for row in batch.rows:
            region_code = "CN" if row.key == failing.key("bad") else "DE"
            await batch.client.put("customers", region_code, f"job-{row.key}", {"spend": row.version})

    def handle_in_a_thread(batch):
        for row in batch.rows:
            assert f"job-{failing.key('good')}" in {it.key for it in batch.client.list("customers", "DE")}
            batch.client.put("customers", "CN", f"thread-{row.key}", {"spend": 1})

    async with regiongate.connect(stack.gateway("fra")) as client:
        await failing.work(made(handle), client=client)
        (row,) = await failing.asides()
        assert (row.key, row.error_class, await failing.ledger()) == (failing.key("bad"), "AccessDenied", [1, 3])
        # What went by the client is the gateway's, and not undone.
        written = await client.get("customers", "DE", f"job-{failing.key('good')}")
        assert written.values["spend"] == 1
        await failing.work(made(handle_in_a_thread, name="threaded"), client=client)
        assert {row.error_class for row in await failing.asides("threaded")} == {"AccessDenied"}


async def test_a_gateway_that_is_not_there_costs_no_row_however_long_it_takes(failing):
    await failing.put("a")
    tries = []

    async def handle(batch):
        tries.append(batch.attempt)
        await enter(batch)
        if len(tries) < 12:
            raise PeerUnreachable("")

    tally = await failing.work(made(handle))
    assert (len(tries), tally.failures, await failing.asides(), await failing.ledger()) == (12, 0, [], [1])


async def test_what_a_handler_gets_as_a_client_before_a_gateway_has_answered_costs_no_row(failing):
    await failing.put("a")
    clients = [None, None, None, None, "client"]

    async def handle(batch):
        assert batch.client == "client"

    begun = await failing.begin(made(handle))
    begun._handling.bench._client = lambda: clients.pop(0)
    await failing.finish(begun)
    assert (clients, await failing.asides()) == ([], [])


async def test_deletions_can_be_poison_too(failing):
    await failing.put("a", "b")
    await failing.delete("a")

    async def handle(batch):
        await enter(batch)
        if any(row.is_deleted for row in batch.rows):
            raise Poison

    job = made(handle, with_deleted=True)
    await failing.work(job)
    assert [(row.key, row.seq) for row in await failing.asides()] == [(failing.key("a"), 3)]
    assert await failing.ledger() == [2]


async def test_a_pass_that_only_moves_over_what_is_not_its_own_calls_no_handler(failing):
    await failing.put("a")
    await failing.delete("a")

    async def handle(batch):
        raise Poison

    await failing.work(made(handle))
    assert (await failing.asides(), (await failing.offset())["seq"]) == ([], 2)
