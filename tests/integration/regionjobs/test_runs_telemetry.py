"""What runs tell: traces, metrics, and whether a runner is ready."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit, urlunsplit

import pytest
from prometheus_client import REGISTRY

from policy.errors import InvalidJob
from regionjobs.definition import Retry, job
from regionjobs.triggers import After
from rowstore.jobs import firings, registry
from runtime.telemetry.spans import read_spans
from runtime.telemetry.tracing import Tracing
from tests.support.cluster import eventually
from tests.support.job_runner_parts import Recorder
from tests.support.job_runner_site import LAW
from tests.support.tcp_proxy import TcpProxy

ROLLOUT = "00-{:032x}-{:016x}-01"


def settle(recorder=None, **words):
    """A job over customers in the EU."""
    return job(**{"name": "settle", "dataset": "customers", "regions": ["EU"]} | words)(recorder or Recorder())


def linked(traceparent):
    """As a span's links have it."""
    _, trace, span, _ = traceparent.split("-")
    return f"{trace}-{span}"


@pytest.fixture
def traced(tmp_path):
    """A tracing whose spans can be read afterwards; nothing is recorded that nobody has asked for."""

    def make(ratio):
        tracing = Tracing("runner", "fra", ratio, tmp_path, "runner-a")

        def read():
            tracing.shutdown()
            return list(read_spans(tmp_path))

        return tracing, read

    return make


@pytest.mark.parametrize("ratio", [0.0, 1.0])
async def test_a_run_is_a_trace_linked_to_the_rollout_that_ended_or_started_it(site, traced, ratio):
    await site.fill("DE", 2)
    rollout, (tracing, read) = ROLLOUT.format(5, 7), traced(ratio)
    made = settle(kind="long-running", batch_size=1)
    async with site.runner("fra", made, tracing=tracing):
        await site.entered("settle", 4)
        await site.move("DE", 1, "ams", traceparent=rollout)
        await site.put("DE", *site.keys_in("DE", 0, 1))
        await site.entered("settle", 5)
        first, second = (await site.runs("fra", "settle", 1))[:2]
    spans = read()
    runs = {span.trace_id: span for span in spans if span.name == "job.run"}
    # What nobody records is not recorded here either; but what a recorded rollout has started is.
    assert len(runs) == (2 if ratio else 1)
    assert all(linked(rollout) in run.links for run in runs.values())
    told = [record.traceparent.split("-")[1] for record in (first, second) if record.traceparent]
    assert list(runs) == told
    batches = [span for span in spans if span.name == "job.batch"]
    assert all(span.parent_id == runs[span.trace_id].span_id for span in batches)
    rows = {trace: [span.attributes["regiongate.rows"] for span in batches if span.trace_id == trace] for trace in runs}
    assert list(rows.values()) == ([[1] * 4, [1]] if ratio else [[1]])
    last = runs[told[-1]]
    assert last.attributes == {
        "regiongate.idc": "fra",
        "regiongate.job": "settle",
        "regiongate.rows": 1,
        "regiongate.job.result": "ended",
    }


async def test_a_run_is_linked_to_the_order_that_fired_it_and_so_is_what_comes_after(site, traced):
    await site.fill("DE", 1)
    order, (tracing, read) = ROLLOUT.format(11, 13), traced(0.0)
    extract, load = settle(name="extract"), settle(name="load", trigger=After("extract"))
    for made in (extract, load):
        await site.register("fra", made)
    async with site.runner("fra", extract, load, tracing=tracing):
        await firings.trigger(site.idcs["fra"].database.fetch, "extract", "manual", order)
        await site.ring("fra")
        await site.finished("fra", "load", 1)
    runs = {span.attributes["regiongate.job"]: span for span in read() if span.name == "job.run"}
    assert {name: span.links for name, span in runs.items()} == {
        "extract": (linked(order),),
        "load": (linked(order),),
    }


async def test_a_failed_batch_tells_its_reason_and_nothing_of_its_rows(site, traced):
    (key,) = site.keys_in("DE", 0, 1, "very-private")
    await site.put("DE", key)
    tracing, read = traced(1.0)

    async def fail(batch):
        raise ValueError(f"cannot digest {batch.rows[0].key}")

    async with site.runner("fra", settle(fail, retry=Retry(attempts=1)), tracing=tracing):
        await site.passed("fra", "settle")
    spans = read()
    assert "VALUEERROR" in {span.status for span in spans if span.name == "job.batch"}
    assert "very-private" not in repr(spans)


def value(name, **labels):
    return REGISTRY.get_sample_value(f"regiongate_{name}", labels)


async def test_metrics_tell_how_a_job_stands(site):
    await site.fill("DE", 3)
    made = settle(name="measured", batch_size=2, regions=["DE"])
    async with site.whole_runner("fra", made) as runner:
        await site.passed("fra", "measured")
        await site.put("DE", *site.keys_in("DE", 0, 2))
        assert value("job_rows_total", job="measured", region_code="DE") == 6
        assert value("job_batches_total", job="measured", outcome="done") == 4
        assert value("job_runs_total", job="measured", result="done") == 1
        assert value("job_batch_seconds_count", job="measured") == 4
        assert value("job_shards", job="measured") == 2
        assert value("job_running", job="measured") == 0
        await eventually(lambda: value("job_lag_rows", job="measured") == 2, 20)
        assert value("job_lag_seconds", job="measured") > 0
        now = (await registry.now(site.idcs["fra"].database.fetch)).timestamp()
        assert now - 60 < value("job_last_success_timestamp_seconds", job="measured") < now
        await eventually(lambda: value("runner_alive") == 1)
        checks = runner.readiness.checks
        assert checks["gateway"] == "none has answered"
        assert checks["job measured"] == "waits for its next time"


async def test_a_runner_is_ready_while_it_can_do_its_work_and_says_what_is_missing(site):
    made = settle(kind="long-running")
    parts = urlsplit(site.idcs["fra"].url)
    async with TcpProxy(parts.port) as proxy:
        way = urlunsplit(parts._replace(netloc=parts.netloc.replace(str(parts.port), str(proxy.port))))
        async with site.whole_runner("fra", made, url=way) as runner:
            await eventually(lambda: "runs over" in runner.readiness.checks["job settle"], 20)
            assert runner.readiness.is_ready
            assert runner.readiness.checks == {
                "session": "ok",
                "database": "ok",
                "policy": "ok",
                "gateway": "none has answered",
                "job settle": "runs over 3 shards by policy revision 1",
            }
            await proxy.cut()
            await eventually(lambda: runner.readiness.checks["database"] == "not connected", 20)
            assert not runner.readiness.is_ready
            await proxy.heal()
            await eventually(lambda: runner.readiness.is_ready, 20)

            await site.apply(LAW.replace("  customers:", "  clients:"))
            await eventually(lambda: "cannot run" in runner.readiness.checks["job settle"], 20)
            assert not runner.readiness.is_ready
            assert "customers" in runner.readiness.checks["job settle"]
            await site.apply()
            await eventually(lambda: runner.readiness.is_ready, 20)
            await site.put("DE", *site.keys_in("DE", 0, 1))
            await site.entered("settle", 1)


async def test_a_job_that_does_not_fit_the_policy_ends_its_runner_at_the_start(site):
    for words, field in (({"dataset": "nothing"}, "dataset"), ({"regions": ["XX"]}, "regions")):
        made = settle(name=f"of-{field}", **words)
        with pytest.raises(InvalidJob) as caught:
            async with site.whole_runner("fra", made) as runner:
                await asyncio.wait({runner.serving}, timeout=10)
        assert caught.value.field_name == field
