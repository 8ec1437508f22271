"""Rows that were set aside are tried again when somebody orders it: as they are, once, and no change twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from policy.errors import DatabaseUnavailable
from regionjobs.definition import Format, Kind, OnPoison, Retry
from rowstore.jobs import offsets, registry
from tests.support.job_failures import Poison, enter, made
from tests.support.job_stores import take

FIRING = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Moody:
    """A handler that cannot bear some keys, until it can."""

    bad: set[str]
    batches: list[tuple[bool, list[int]]] = field(default_factory=list)
    """Whether it was a replay, and what was handed over."""

    async def __call__(self, batch):
        self.batches.append((batch.is_replay, [row.version for row in batch.rows]))
        await enter(batch)
        if self.bad & {row.key for row in batch.rows}:
            raise Poison("again" if batch.is_replay else "first")

    @property
    def replayed(self):
        return [seqs for is_replay, seqs in self.batches if is_replay]


async def with_asides(failing, rows, bad, **words):
    """Some rows, of which some are set aside; returns the handler and the job."""
    handler = Moody(set(failing.keys(bad)))
    await failing.put(*rows)
    job = made(handler, **words)
    await failing.work(job)
    assert await failing.aside_keys() == failing.keys(bad)
    handler.batches.clear()
    return handler, job


async def order(failing, job="settle"):
    await registry.replay(failing.database.fetch, job, "DE")


async def test_rows_that_are_replayed_are_handed_over_together_and_forgotten_when_they_are_handled(failing):
    handler, job = await with_asides(failing, "abcdef", "bdf")
    await failing.work(job)
    assert handler.replayed == []
    handler.bad.clear()
    await order(failing)
    tally = await failing.work(job)
    assert (handler.replayed, tally.rows) == ([[2, 4, 6]], 3)
    assert (await failing.ledger(), await failing.asides()) == ([1, 2, 3, 4, 5, 6], [])
    offset = await failing.offset()
    assert (offset["seq"], offset["rows"]) == (6, 6)
    await failing.work(job)
    assert len(handler.batches) == 1


async def test_a_row_that_fails_again_stays_set_aside_and_the_others_are_handled(failing):
    handler, job = await with_asides(failing, "abcd", "abcd")
    handler.bad = {failing.key("c")}
    await order(failing)
    await failing.work(job)
    assert await failing.ledger() == [1, 2, 4]
    (row,) = await failing.asides()
    assert (row.key, row.seq, row.attempts, row.error) == (failing.key("c"), 3, 6, "again")
    assert not row.is_replay_wanted
    # Nobody has ordered anything more.
    handler.batches.clear()
    await failing.work(job)
    assert handler.batches == []


async def test_a_row_that_has_changed_since_is_the_scans_alone(failing):
    handler, job = await with_asides(failing, "ab", "ab")
    handler.bad.clear()
    await failing.put("a")
    await order(failing)
    await failing.work(job)
    assert handler.batches == [(True, [2]), (False, [3])]
    assert (await failing.ledger(), await failing.asides()) == ([2, 3], [])


async def test_a_row_that_was_set_aside_twice_is_tried_again_once(failing):
    handler, job = await with_asides(failing, "a", "a")
    await failing.put("a")
    await failing.work(job)
    assert [row.seq for row in await failing.asides()] == [1, 2]
    handler.bad.clear()
    handler.batches.clear()
    await order(failing)
    await failing.work(job)
    assert handler.batches == [(True, [2])]
    assert (await failing.ledger(), await failing.asides()) == ([2], [])


async def test_rows_that_were_deleted_meanwhile_are_forgotten(failing):
    handler, job = await with_asides(failing, "ab", "ab")
    handler.bad.clear()
    await failing.delete("a")
    await order(failing)
    await failing.work(job)
    assert handler.batches == [(True, [2])]
    assert (await failing.ledger(), await failing.asides()) == ([2], [])
    await failing.put("c")
    handler.bad = {failing.key("c")}
    await failing.work(job)
    await failing.delete("c")
    await order(failing)
    await failing.work(job)
    assert await failing.asides() == []


async def test_a_deletion_that_was_set_aside_is_tried_again_where_the_job_wants_deletions(failing):
    handler = Moody(set())
    await failing.put("a")
    job = made(handler, with_deleted=True)
    await failing.work(job)
    await failing.delete("a")
    handler.bad = {failing.key("a")}
    await failing.work(job)
    assert [row.seq for row in await failing.asides()] == [2]
    handler.bad.clear()
    await order(failing)
    await failing.work(job)
    assert (handler.replayed, await failing.ledger(), await failing.asides()) == ([[2]], [1, 2], [])


async def test_replays_keep_to_the_size_of_a_batch_and_to_its_format(failing):
    handler, job = await with_asides(failing, "abcde", "abcde", batch_size=2)
    handler.bad.clear()
    await order(failing)
    await failing.work(job)
    assert handler.replayed == [[1, 2], [3, 4], [5]]

    tables = []

    def handle(batch):
        tables.append((batch.is_replay, batch.table.column("seq").to_pylist()))
        if not batch.is_replay:
            raise Poison

    await failing.put("f")
    job = made(handle, format=Format.ARROW, retry=Retry(1))
    await failing.work(job)
    await order(failing)
    await failing.work(job)
    assert tables == [(False, [6]), (True, [6])]
    assert await failing.asides() == []


async def test_without_a_firing_a_batch_job_is_called_for_its_replays_only(failing):
    handler = Moody(set(failing.keys("a")))
    await failing.put("a")
    job = made(handler, kind=Kind.BATCH, name="passing")
    await failing.work(job, firing=FIRING)
    handler.bad.clear()
    handler.batches.clear()
    await failing.put("b")
    await order(failing, "passing")
    await failing.work(job)
    assert handler.batches == [(True, [1])]
    offset = await failing.offset("passing")
    assert (offset["seq"], offset["pass_time"]) == (1, FIRING)
    await failing.work(job, firing=FIRING)
    assert handler.batches == [(True, [1]), (False, [2])]


async def test_a_replay_that_fails_never_stops_a_job_that_stops_at_poison(failing):
    handler, _ = await with_asides(failing, "ab", "a")
    job = made(handler, on_poison=OnPoison.STOP)
    await order(failing)
    await failing.put("c")
    await failing.work(job)
    assert await failing.ledger() == [2, 3]
    assert [row.error for row in await failing.asides()] == ["again"]
    assert not (await failing.offset())["is_stopped"]


async def test_a_shard_where_the_job_has_stopped_waits_with_its_replays(failing):
    handler, _ = await with_asides(failing, "ab", "a")
    job = made(handler, on_poison=OnPoison.STOP)
    handler.bad.add(failing.key("c"))
    await failing.put("c")
    await failing.work(job)
    await order(failing)

    async def wanted():
        found = await offsets.replays_wanted(failing.database.fetch, "settle", ["DE"])
        return failing.shard in [it.shard for it in found]

    assert not await wanted()
    await registry.resume(failing.database.fetch, "settle")
    assert await wanted()


@pytest.mark.parametrize("passes", [1, 7])
async def test_what_waiting_helps_against_costs_no_replay(failing, passes):
    await with_asides(failing, "ab", "ab")
    await order(failing)
    tries = []

    async def handle(batch):
        tries.append(batch.is_replay)
        if len(tries) <= passes:
            raise DatabaseUnavailable("")
        await enter(batch)

    await failing.work(made(handle))
    assert (tries, await failing.ledger(), await failing.asides()) == ([True] * (passes + 1), [1, 2], [])


async def test_whoever_has_lost_the_shard_commits_no_replay(failing):
    await with_asides(failing, "a", "a")
    await order(failing)
    tries = []

    async def handle(batch):
        await enter(batch)
        tries.append(batch.is_replay)
        if len(tries) == 1:
            await take(failing.database, "two.2", shard=failing.shard)

    await failing.work(made(handle))
    assert (tries, await failing.ledger(), await failing.asides()) == ([True, True], [1], [])
