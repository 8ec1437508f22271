"""A database that restarts, freezes, or whose answers get lost in the middle of a batch: no row is lost, doubled or set
aside."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import event

from regionjobs.definition import Retry
from tests.support.job_failures import QUICK, enter, failure_site, made
from tests.support.row_databases import until
from tests.support.tcp_proxy import TcpProxy

KEYS = "abcdefghij"
PATIENT = Retry(2, QUICK.first_pause, QUICK.longest_pause)
"""Two failures of a handler, and its row would be set aside."""


@asynccontextmanager
async def behind_a_proxy(url, shard):
    """A shard whose runner reaches its database by a proxy."""
    parts = urlsplit(url)
    async with TcpProxy(parts.port) as proxy:
        by = urlunsplit(parts._replace(netloc=parts.netloc.replace(str(parts.port), str(proxy.port))))
        async with failure_site(url, shard, by=by, statement_timeout=1.0) as made_site:
            yield made_site, proxy


@pytest.fixture
async def far(shard_database, free_shards):
    """A shard, and the proxy between its runner and its database."""
    async with behind_a_proxy(shard_database, next(free_shards)) as both:
        yield both


async def everything_is_done_once(site, job, begun):
    """Whatever has happened, in the end each change is handled once, and none is set aside."""
    await site.finish(begun)
    await site.work(job)
    assert await site.ledger() == list(range(1, len(KEYS) + 1))
    assert await site.asides() == []
    assert (await site.offset())["seq"] == len(KEYS)


class Accident:
    """A handler in whose second batch something happens, before or after what it does."""

    def __init__(self, happen, *, is_late):
        self.happen, self.is_late, self.batches = happen, is_late, 0

    async def __call__(self, batch):
        self.batches += 1
        now = self.batches == 2
        if now and not self.is_late:
            await self.happen()
        await enter(batch)
        if now and self.is_late:
            await self.happen()


@pytest.mark.parametrize("is_late", [False, True])
async def test_all_connections_are_cut_in_the_middle_of_a_batch(far, is_late):
    site, proxy = far
    await site.put(*KEYS)
    job = made(Accident(proxy.cut_connections, is_late=is_late), batch_size=3, retry=PATIENT)
    await everything_is_done_once(site, job, await site.begin(job))


async def test_the_server_ends_the_batchs_session(far):
    site, _ = far
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"

    async def happen():
        await site.idc.hand.execute(end, f"batches-{site.shard}")

    await site.put(*KEYS)
    job = made(Accident(happen, is_late=True), batch_size=3, retry=PATIENT)
    await everything_is_done_once(site, job, await site.begin(job))


async def test_the_database_is_gone_for_longer_than_all_attempts_take(far):
    site, proxy = far
    tries = []

    async def handle(batch):
        tries.append(len(batch))
        if len(tries) == 2:
            await proxy.cut()
            asyncio.get_running_loop().call_later(0.3, lambda: asyncio.ensure_future(proxy.heal()))
        await enter(batch)

    await site.put(*KEYS)
    job = made(handle, batch_size=3, retry=PATIENT)
    await everything_is_done_once(site, job, await site.begin(job))


async def test_the_database_freezes_under_a_batch_for_longer_than_the_batch_may_take(far):
    site, proxy = far
    frozen = asyncio.Event()

    async def happen():
        proxy.pause()
        frozen.set()

    await site.put(*KEYS)
    job = made(Accident(happen, is_late=False), batch_size=3, retry=PATIENT, timeout=PATIENT.longest_pause * 60)
    begun = await site.begin(job)
    working = asyncio.create_task(site.finish(begun))
    await frozen.wait()

    async def has_given_up():
        return site.last.bench._places._value == job.concurrency

    await until(has_given_up, "the batch is given up")
    proxy.resume()
    await working
    await everything_is_done_once(site, job, begun)


@pytest.mark.parametrize("uses_connection", [True, False])
async def test_the_answer_to_a_commit_is_lost(far, uses_connection):
    """The commit has happened; nobody was told. Handled anew it would be done twice."""
    site, proxy = far
    seen, losses = [], []

    async def handle(batch):
        seen.extend(row.version for row in batch.rows)
        if uses_connection:
            await enter(batch)

    def swallow(*_):
        if len(seen) == 6 and not losses:
            proxy.swallow_answers()
            losses.append(asyncio.create_task(lose()))
        return True

    async def lose():
        await until(is_committed, "the commit is there")
        await proxy.cut_connections()
        proxy.resume()

    async def is_committed():
        offset = await site.offset()
        return offset is not None and offset["seq"] == 6

    await site.put(*KEYS)
    job = made(handle, batch_size=3, retry=PATIENT)
    if uses_connection:
        # The offset's own answer is still heard.
        event.listen(site.connections._engine.sync_engine, "commit", swallow)
    begun = await site.begin(job, still=(lambda _: True) if uses_connection else swallow)
    await site.finish(begun)
    await site.work(job)
    await losses[0]
    assert seen == list(range(1, len(KEYS) + 1))
    assert await site.ledger() == (seen if uses_connection else [])
    assert (await site.asides(), (await site.offset())["rows"]) == ([], len(KEYS))


async def test_no_connection_is_free_for_a_batch(far):
    site, _ = far
    await site.put(*KEYS)
    job = made(enter, batch_size=3, retry=PATIENT)
    begun = await site.begin(job)
    site.connections._engine.pool._timeout = 0.01
    async with site.connections.take(), site.connections.take(), site.connections.take(), site.connections.take():
        for _ in range(5):
            assert await begun.go() > 0
    await everything_is_done_once(site, job, begun)
