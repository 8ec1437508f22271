"""Whole runners whose handlers block, do not end, or ask for what the policy lacks; and the bounds they keep."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import pytest

from policy.errors import JobConflict
from regionjobs import metrics, run
from regionjobs.definition import Kind, forget_registered, job
from regionjobs.runner import Runner
from regionjobs.settings import RunnerSettings
from rowstore.jobs import registry
from rowstore.jobs.model import JobRecord
from runtime.etcd import EtcdClient
from runtime.telemetry.tracing import Tracing
from tests.support.cluster import settings
from tests.support.job_failures import QUICK
from tests.support.job_runner_parts import Recorder, enter
from tests.support.job_runner_site import LAW
from tests.support.postgres import create_database
from tests.support.row_databases import until

WITHOUT_ORDERS = LAW[: LAW.index("  orders:")]


class NoGateway:
    """The face's door, where no gateway has ever registered: nobody knocks."""

    connect = open_ping = None


def forever(handler, **words):
    words = {"name": "settle", "dataset": "customers", "kind": Kind.LONG_RUNNING, "retry": QUICK} | words
    return job(**words)(handler)


@asynccontextmanager
async def whole(site, *jobs, url="", **options):
    """A whole runner as a process has it, in fra, before it is started."""
    given = RunnerSettings(idc="fra", database_url=url or site.idcs["fra"].url, **options)
    async with EtcdClient(settings(site.endpoint)) as client:
        yield Runner(
            given,
            jobs,
            name="whole",
            client=client,
            keys=site.keys,
            tracing=Tracing("runner", "fra", 0.0, None),
            door=NoGateway(),
        )


@asynccontextmanager
async def serving(runner):
    """The same, serving until the block ends."""
    stop = asyncio.Event()
    task = asyncio.create_task(runner.serve(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=20)


def in_a_thread(site, made, stop, **options):
    """A whole runner with an event loop of its own."""

    async def main():
        async with whole(site, made, **options) as runner, serving(runner):
            while not stop.is_set():  # noqa: ASYNC110 (set by another thread)
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    return thread


async def test_a_handler_that_blocks_the_event_loop_loses_its_shards_and_commits_nothing(site, capsys):
    await site.fill("DE", 3)
    began, stop, blocked = threading.Event(), threading.Event(), metrics.LOOP_BLOCKED._value.get()

    async def block(batch):
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch.rows])
        if not began.is_set():
            began.set()
            time.sleep(5)  # noqa: ASYNC251 (longer than the lease)

    thread = in_a_thread(site, forever(block, regions=["DE"]), stop, lease_ttl=2)
    await until(lambda: asyncio.to_thread(began.wait, 5), "it blocks")
    forget_registered()
    other = Recorder()
    async with site.runner("fra", forever(other, regions=["DE"])):
        assert await site.entered("settle", 6) == [f"DE/{shard}/{seq}" for shard in (0, 1) for seq in (1, 2, 3)]
        assert other.changes
        await until(lambda: asyncio.to_thread(lambda: metrics.LOOP_BLOCKED._value.get() > blocked), "it is noticed")
        stop.set()
        await asyncio.to_thread(thread.join, 20)
    assert len(await site.ledger("settle")) == 6
    assert "a handler has blocked the event loop" in capsys.readouterr().out


async def test_a_handler_that_returns_long_after_its_drain_commits_nothing(site, monkeypatch):
    monkeypatch.setattr(run, "END_SECONDS", 0.2)
    (key,) = site.keys_in("DE", 0, 1)
    await site.put("DE", key)
    began, may_return, returned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def linger(batch):
        began.set()
        while not may_return.is_set():
            try:
                await may_return.wait()
            except asyncio.CancelledError:
                continue
        try:
            await enter(batch, [("DE", "0", "1")])
        finally:
            returned.set()

    try:
        async with site.runner("fra", forever(linger, regions=["DE"]), drain=0.1) as runner, asyncio.timeout(30):
            await began.wait()
            runner.loops["settle"].stop()
            await asyncio.wait(runner.tasks)
            await runner.parts.membership.stop()
            forget_registered()
            async with site.runner("fra", forever(Recorder(), regions=["DE"]), name="other"):
                assert await site.entered("settle", 1) == ["DE/0/1"]
            may_return.set()
            await returned.wait()
    finally:
        # Or the loop of the test would wait for it.
        may_return.set()
    assert await site.ledger("settle") == ["DE/0/1"]


async def test_a_job_waits_while_the_policy_does_not_have_its_dataset_and_goes_on_when_it_is_back(site):
    await site.fill("DE", 1)
    recorder = Recorder()
    orders = job(name="ordered", dataset="orders", kind=Kind.LONG_RUNNING)(Recorder())
    async with whole(site, forever(recorder, regions=["DE"]), orders) as runner, serving(runner):
        await site.entered("settle", 2)
        await site.apply(WITHOUT_ORDERS)

        def is_told():
            readiness = runner.readiness()
            told = readiness.checks["job ordered"]
            return not readiness.is_ready and "dataset: the policy has no dataset 'orders'; it has customers" in told

        await until(lambda: asyncio.sleep(0, is_told()), "readiness names job, field and what there is")
        # The other job is not held up.
        await site.put("DE", *site.keys_in("DE", 0, 3, "later"))
        await site.entered("settle", 5)
        await site.apply(LAW)
        await until(lambda: asyncio.sleep(0, runner.readiness().is_ready), "it goes on")


async def test_a_job_that_the_database_knows_as_another_one_ends_the_process_by_name(site):
    known = JobRecord("settle", "orders", "per shard", "batch")
    await registry.register(site.idcs["fra"].database.fetch, known)
    async with whole(site, forever(Recorder())) as runner:
        with pytest.raises(JobConflict, match=r"job settle is known here as a batch job .* of orders") as raised:
            await runner.serve(asyncio.Event())
    assert raised.value.field_name == "name"


async def test_a_database_without_tables_is_brought_up_to_date(site, postgres_server):
    url = await create_database(postgres_server)
    async with whole(site, forever(Recorder()), url=url) as runner, serving(runner):
        await until(lambda: asyncio.sleep(0, runner.readiness().is_ready), "it runs")


async def test_a_database_that_a_newer_release_has_migrated_is_left_alone_and_named(site):
    await site.idcs["fra"].hand.execute("UPDATE alembic_version SET version_num = '9999'")
    async with whole(site, forever(Recorder())) as runner, serving(runner) as task:

        def is_told():
            return "a newer release has migrated the database (to 9999)" in runner.readiness().checks.get("start", "")

        await until(lambda: asyncio.sleep(0, is_told()), "readiness says why")
        assert not runner.readiness().is_ready
        # Somebody goes back to this release.
        await site.idcs["fra"].hand.execute("UPDATE alembic_version SET version_num = '0004'")
        await until(lambda: asyncio.sleep(0, runner.readiness().is_ready), "it runs")
        assert "start" not in runner.readiness().checks
        assert not task.done()


class Crowd:
    """A handler that counts how many of it are at work, and waits until nobody else comes."""

    def __init__(self):
        self.now = self.most = 0

    async def __call__(self, batch):
        self.now += 1
        self.most = max(self.most, self.now)
        await batch.connection.exec_driver_sql("SELECT pg_sleep(0.02)")
        await enter(batch, [batch.idempotency_key(row).split("/")[1:] for row in batch.rows])
        self.now -= 1


@pytest.mark.parametrize(("concurrency", "connections", "most"), [(2, 8, 2), (8, 2, 2), (1, 8, 1)])
async def test_no_more_batches_are_at_work_than_a_job_and_a_runner_may_have(site, concurrency, connections, most):
    for code, shard in (("DE", 0), ("DE", 1), ("FR", 0)):
        await site.put(code, *site.keys_in(code, shard, 6), ring=False)
    crowd = Crowd()
    made = forever(crowd, concurrency=concurrency, batch_size=2)
    async with whole(site, made, batch_connections=connections) as runner, serving(runner):
        await site.entered("settle", 18)
    assert crowd.most == most
    assert len(await site.ledger("settle")) == 18
